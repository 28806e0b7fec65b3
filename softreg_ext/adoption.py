"""PyTorch's own names, made to call the fused losses: for code that knows nothing of them."""

import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import cross_entropy
from .linear import linear_cross_entropy

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions

_LOGITS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_TARGETS = _LOGITS | {torch.int64, torch.uint8}

_original = F.cross_entropy
_original_linear = getattr(F, "linear_cross_entropy", None)  # torch 2.13 and newer have it
_lock = threading.Lock()
_active: set["Patch"] = set()


def _are_taken(
    logits_or_layer: tuple[Any, ...], target: Any, weight: Any, label_smoothing: Any
) -> bool:
    """Whether the fused op does with these what the original does, refusals included."""
    for tensor in (*logits_or_layer, target, *([] if weight is None else [weight])):
        # A subclass may have an opinion of its own about the function that is called.
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
            return False
    return (
        all(tensor.dtype in _LOGITS for tensor in logits_or_layer)
        and target.dtype in _TARGETS
        and isinstance(label_smoothing, (int, float))
        and 0 <= label_smoothing <= 1
        and not (weight is not None and weight.requires_grad)
    )


@functools.wraps(_original)
def _patched(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    # Code that took the name while it was patched keeps this function; it undoes itself.
    if not _active or not _are_taken((input,), target, weight, label_smoothing):
        return _original(
            input,
            target,
            weight,
            size_average,
            ignore_index,
            reduce,
            reduction,
            label_smoothing,
        )
    return cross_entropy(
        input,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        size_average=size_average,
        reduce=reduce,
    )


def _patched_linear(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: "LinearCrossEntropyOptions | None" = None,
) -> Tensor:
    layer = (input, linear_weight, *([] if linear_bias is None else [linear_bias]))
    is_taken = (
        bool(_active)
        and _are_taken(layer, target, weight, label_smoothing)
        # The original refuses any ignore_index beside probabilities.
        and (ignore_index is None or not target.is_floating_point())
    )
    loss = linear_cross_entropy if is_taken else _original_linear
    return loss(  # type: ignore[misc]
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
    )


_PATCHED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]]
_PATCHED = {"cross_entropy": (_original, _patched)}
if _original_linear is not None:
    functools.update_wrapper(_patched_linear, _original_linear)
    _PATCHED["linear_cross_entropy"] = (_original_linear, _patched_linear)


class Patch:
    """What `patch` returns: holds the patch until its ``with`` block ends, or `unpatch`."""

    def __enter__(self) -> "Patch":
        with _lock:
            _active.add(self)
            for name, (_, patched) in _PATCHED.items():
                setattr(F, name, patched)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _lock:
            _active.discard(self)
            _restore_if_unused()


def _restore_if_unused() -> None:
    # Not over what somebody else has put there since: theirs calls ours, which calls the original.
    for name, (original, patched) in _PATCHED.items():
        if not _active and getattr(F, name) is patched:
            setattr(F, name, original)


def patch() -> Patch:
    """Make ``F.cross_entropy`` and ``nn.CrossEntropyLoss`` use the fused op.

    From torch 2.13 on, ``F.linear_cross_entropy`` and ``nn.LinearCrossEntropyLoss`` use the fused
    op with the layer.

    The patch applies to the whole process until `unpatch`, or until the end of the block if called
    as ``with softreg_ext.patch():``. Blocks may be nested, and may overlap in several threads; the
    last to end restores the originals. A second call changes nothing.

    PyTorch's originals still handle what the fused ops do not accept or treat differently: tensors
    that are not on the CPU, tensor subclasses, other dtypes, a weight that requires grad, a
    negative smoothing. Only calls through the module are redirected (``F.cross_entropy(...)``, as
    in ``nn.CrossEntropyLoss`` and in most libraries): a name imported from it earlier still refers
    to the original, and code already compiled by ``torch.compile`` is unchanged. TorchScript cannot
    compile ``nn.CrossEntropyLoss`` once it has seen the fused op in it.

    Returns:
        A context manager that undoes this call.
    """
    return Patch().__enter__()


def unpatch() -> None:
    """Undo every `patch`, open ``with`` blocks included."""
    with _lock:
        _active.clear()
        _restore_if_unused()
