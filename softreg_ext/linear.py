"""A linear layer and the loss of its output as a function."""

from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import arguments
from ._extension import _C

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int | None = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    logit_scale: float = ...,
    softcap: float | None = ...,
    return_lse: Literal[False] = ...,
    options: "LinearCrossEntropyOptions | None" = ...,
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int | None = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    logit_scale: float = ...,
    softcap: float | None = ...,
    return_lse: Literal[True],
    options: "LinearCrossEntropyOptions | None" = ...,
) -> tuple[Tensor, Tensor]: ...
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    options: "LinearCrossEntropyOptions | None" = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Softmax cross-entropy of a linear layer's output, without all of its logits at a time.

    The same as ``cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)``, see
    :func:`softreg_ext.cross_entropy`, and as :func:`torch.nn.functional.linear_cross_entropy`.

    If the logits would take more than 60 MB (256 MB on a GPU), they are computed that many at a
    time (of a large layer more, up to a quarter of its memory), and the gradient ``g`` of a chunk
    of them overwrites it. Apart from a chunk, only ``input``, the layer and their gradients take
    memory. Half types also need a float32 sum of ``linear_weight``'s gradient, or as many bytes of
    additional logits: larger chunks take less time, and a single chunk needs no sum.

    On processors without instructions for half types, these are multiplied as float32, some
    classes at a time; :func:`torch.mm` would multiply them item by item. On AMD's Zen 5, float32
    is multiplied by oneDNN, in half the time of :func:`torch.mm`. On a CPU, rows whose labels are
    all ``ignore_index`` are left out of the products where that saves time and ``return_lse`` does
    not ask for them: of many classes, with half of the rows ignored, a step takes half as long.

    For "mean" and "sum", a forward pass that records gradients also computes ``g W`` and ``g^T x``
    while it has the logits, and keeps them until ``backward()``. On a GPU and under
    ``torch.compile`` the backward pass multiplies them by the gradient of the loss. For "none",
    with ``return_lse``, and for float16 on a GPU or under ``torch.compile``, the backward pass
    computes the logits again.

    Under autocast the layer has the lower precision, and the loss is in float32. All logits exist
    at once under ``torch.func`` transforms and forward-mode AD, for second derivatives, and if
    ``target`` or ``weight`` requires grad.

    ``input`` may be a DTensor sharded over rows, and ``linear_weight`` one sharded over classes:
    see :func:`softreg_ext.cross_entropy`. The backward pass then computes the logits again. A plain
    ``input`` with a DTensor is an error, because it does not say whether its rows are the same on
    every process.

    Args:
        input: shape (N, features) or (features); float32, float64, bfloat16 or float16.
        linear_weight: shape (C, features), or (C, d1, ..., dK, features) for logits of shape
            (N, C, d1, ..., dK); dtype of ``input``.
        target: as for logits of that shape: labels in [0, C) or ``ignore_index``, shape (N),
            (N, d1, ..., dK) or (); or class probabilities, shaped like the logits, sparse ones too.
        linear_bias: the shape of ``linear_weight`` without features; default: none.
        weight: one factor for each class, shape (C).
        reduction: "none", "mean" or "sum".
        ignore_index: the label whose rows add nothing to the loss; None is -100. Negative with
            class probabilities.
        label_smoothing: in [0, 1].
        z_loss, logit_scale, softcap, return_lse: see :func:`softreg_ext.cross_entropy`.
        options: a :class:`torch.nn.LinearCrossEntropyOptions` is taken, as PyTorch's function takes
            it, and changes nothing: it says how to choose chunks, which are chosen here as above.

    Returns:
        The loss in ``input``'s dtype: for "none" the shape of labels, else (). With ``return_lse``
        the pair of it and ``lse``, in the shape of labels.

    Raises:
        IndexError: a label is out of range.
        ValueError: batch sizes differ, ``reduction`` is not one of "none", "mean" and "sum", or
            ``ignore_index`` does not fit in 64 bits.
        TypeError: an argument that should be a tensor, an integer, a number or a bool is not.
        NotImplementedError: the input has another dtype, is on a device without kernels, or is
            sparse.
        RuntimeError: any other wrong dtype, shape or device, or a wrong value of a number.
    """
    if ignore_index is None:
        ignore_index = -100
    elif type(ignore_index) is not int:
        ignore_index = arguments.index_of_ignored("linear_cross_entropy", ignore_index)
    if options is not None:
        arguments.check_chunking("linear_cross_entropy", options)
    of_loss = (ignore_index, label_smoothing, z_loss, logit_scale, softcap, return_lse)
    if has_torch_function_variadic(input, linear_weight, target, linear_bias, weight):
        return handle_torch_function(
            linear_cross_entropy,  # type: ignore[arg-type]
            (input, linear_weight, target, linear_bias, weight),
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            options=options,
            **arguments.Options(*of_loss)._asdict(),
        )
    if not (type(input) is type(linear_weight) is Tensor) and (
        arguments.is_dtensor(input) or arguments.is_dtensor(linear_weight)
    ):
        from . import sharded

        named = arguments.Options(*of_loss)._asdict()
        return sharded.linear_cross_entropy(  # type: ignore[no-any-return]
            input, linear_weight, target, linear_bias, weight, reduction=reduction, **named
        )
    reduction_code = arguments.reduction_code("linear_cross_entropy", reduction)
    target = arguments.densified(target)
    given = (input, linear_weight, linear_bias, target, weight, reduction_code, *of_loss)
    if torch.compiler.is_compiling() or type(ignore_index) is not int:
        loss, lse, *_ = torch.ops.softreg_ext.linear_cross_entropy(*given)
        return (loss, lse) if return_lse else loss
    try:
        return _C.linear_cross_entropy(*given)  # type: ignore[no-any-return]
    except TypeError:
        arguments.check_types(
            "linear_cross_entropy",
            {"input": input, "linear_weight": linear_weight, "target": target},
            {"linear_bias": linear_bias, "weight": weight},
            arguments.Options(*of_loss),
        )
        raise
    except NotImplementedError:
        arguments.explain_missing_kernel(
            "linear_cross_entropy",
            {
                "input": input,
                "linear_weight": linear_weight,
                "linear_bias": linear_bias,
                "target": target,
                "weight": weight,
            },
        )
        raise
