"""The loss as a function."""

from typing import Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import arguments
from ._extension import _C


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    *,
    z_loss: float = ...,
    logit_scale: float = ...,
    softcap: float | None = ...,
    return_lse: Literal[False] = ...,
    size_average: bool | None = ...,
    reduce: bool | None = ...,
) -> Tensor: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    *,
    z_loss: float = ...,
    logit_scale: float = ...,
    softcap: float | None = ...,
    return_lse: Literal[True],
    size_average: bool | None = ...,
    reduce: bool | None = ...,
) -> tuple[Tensor, Tensor]: ...
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Softmax cross-entropy of logits, fused into one kernel in each direction.

    Equivalent to :func:`torch.nn.functional.cross_entropy`. With ``lse = log(sum_c exp(x_c))``,
    class weights ``w`` and smoothing ``s``, a row's loss for the label ``t`` is
    ``(1 - s) w_t (lse - x_t) + s/C sum_c w_c (lse - x_c)`` (label smoothing as in Szegedy et al.,
    2016), and for class probabilities ``q`` it is
    ``sum_c w_c ((1 - s) q_c + s/C) (lse - x_c)``. The row's maximum is subtracted first, so the
    result is exact for logits of any size. ``"mean"`` divides by the sum of the labels' weights, or
    with probabilities by the number of rows.

    Differences from PyTorch:

    - A row whose label is ``ignore_index`` is not read: a NaN in it does not reach the gradient.
    - A ``label_smoothing`` that is negative or NaN is an error.
    - int32 and int16 labels are accepted too.
    - ``size_average`` and ``reduce`` are keyword-only, so ``ignore_index`` directly follows
      ``weight``.
    - TorchScript can trace the function but not compile it.
    - The mean of smoothed labels that all have weight 0 is infinite, not NaN.

    ``input`` may be a DTensor sharded over rows, classes or both; ``target`` and ``weight`` must
    then be DTensors on the same mesh, or the same on every process. The loss is a DTensor too,
    sharded like the rows for "none" and replicated otherwise. If classes are sharded, each process
    reads its own and three numbers per row are communicated. There are then first derivatives
    only, and a NaN in an ignored row reaches that row's gradient. For probabilities and smoothed
    labels the classes are gathered first. If rows are sharded, a label out of range raises only on
    the processes that have its row, and the others wait for them.

    Args:
        input: logits, shape (N, C), (N, C, d1, ..., dK) or (C); float32, float64, bfloat16 or
            float16. The half types are accumulated in float32.
        target: labels in [0, C), or ``ignore_index``: the shape of ``input`` without C, int64,
            int32, int16 or uint8. Or class probabilities: the shape of ``input``, any floating
            point type; differentiable too. Sparse ones are made dense.
        weight: one factor for each class, shape (C), dtype of ``input``; default: all 1. For
            K-dimensional logits with labels and no smoothing, any shape with C entries.
        ignore_index: the label whose rows add nothing to the loss and get a gradient of zero.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1]; how much of the target is spread evenly over the classes.
        z_loss: adds ``z_loss * lse^2`` to the loss of each row that counts, before the reduction
            (de Brebisson and Vincent, 2016); it keeps ``lse`` near 0. 0 or positive.
        logit_scale: factor that the logits are multiplied by first (an inverse temperature). A
            plain number; to learn a scale, multiply the logits by it before the call.
        softcap: bounds the scaled logits to ``softcap * tanh(logits / softcap)`` (as in Gemma 2,
            2024); positive; default: no bound.
        return_lse: also return ``lse`` of each row, ignored ones too, of the scaled and capped
            logits; differentiable. In float32 for the half types.
        size_average: deprecated; with ``reduce``, overrides ``reduction`` as in PyTorch.
        reduce: deprecated.

    Returns:
        The loss in ``input``'s dtype (with probabilities, the type that ``input``, ``target`` and
        ``weight`` promote to): for "none" the shape of ``input`` without C, else (). With
        ``return_lse`` the pair of it and ``lse``, in the shape of ``input`` without C.

    Raises:
        IndexError: a label is out of range.
        ValueError: batch sizes differ, ``reduction`` is not one of "none", "mean" and "sum", or
            ``ignore_index`` does not fit in 64 bits.
        TypeError: an argument that should be a tensor, an integer, a number or a bool is not.
        NotImplementedError: the logits have another dtype, are on a device without kernels, or are
            sparse.
        RuntimeError: any other wrong dtype, shape or device, or a wrong value of a number.
    """
    if type(ignore_index) is not int:
        ignore_index = arguments.index_of_ignored("cross_entropy", ignore_index)
    options = (ignore_index, label_smoothing, z_loss, logit_scale, softcap, return_lse)
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy,  # type: ignore[arg-type]
            (input, target, weight),
            input,
            target,
            weight,
            reduction=reduction,
            size_average=size_average,
            reduce=reduce,
            **arguments.Options(*options)._asdict(),
        )
    if size_average is not None or reduce is not None:
        reduction = arguments.legacy_reduction(size_average, reduce)
    if type(input) is not Tensor and arguments.is_dtensor(input):
        from . import sharded

        named = arguments.Options(*options)._asdict()
        return sharded.cross_entropy(  # type: ignore[no-any-return]
            input, target, weight, reduction=reduction, **named
        )
    reduction_code = arguments.reduction_code("cross_entropy", reduction)
    if torch.compiler.is_compiling() or type(ignore_index) is not int:
        # A graph holds the dispatcher's op; the pybind11 entry is opaque to the tracer.
        loss, lse, *_ = torch.ops.softreg_ext.cross_entropy_forward(
            input, target, weight, reduction_code, *options
        )
        return (loss, lse) if return_lse else loss
    try:
        return _C.cross_entropy(  # type: ignore[no-any-return]
            input, target, weight, reduction_code, *options
        )
    except TypeError:
        arguments.check_types(
            "cross_entropy",
            {"input": input, "target": target},
            {"weight": weight},
            arguments.Options(*options),
        )
        raise
    except NotImplementedError:
        dense = arguments.densified(target)  # here: to ask in each call would take longer
        arguments.explain_missing_kernel(
            "cross_entropy", {"input": input, "target": dense, "weight": weight}
        )
        if dense is target:
            raise
        return _C.cross_entropy(  # type: ignore[no-any-return]
            input, dense, weight, reduction_code, *options
        )
