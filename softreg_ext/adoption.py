"""PyTorch's own names, made to call the fused loss: for code that knows nothing of it."""

import functools
import threading
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import cross_entropy

_LOGITS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_TARGETS = _LOGITS | {torch.int64, torch.uint8}

_original = F.cross_entropy
_lock = threading.Lock()
_active: set["Patch"] = set()


def _is_taken(input: Any, target: Any, weight: Any, label_smoothing: Any) -> bool:
    """Whether the fused op does with these what the original does, refusals included."""
    for tensor in (input, target) if weight is None else (input, target, weight):
        # A subclass may have an opinion of its own about the function that is called.
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
            return False
    return (
        input.dtype in _LOGITS
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
    if not _active or not _is_taken(input, target, weight, label_smoothing):
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


class Patch:
    """What `patch` returns: holds the patch until its ``with`` block ends, or `unpatch`."""

    def __enter__(self) -> "Patch":
        with _lock:
            _active.add(self)
            F.cross_entropy = _patched
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
    if not _active and F.cross_entropy is _patched:
        F.cross_entropy = _original


def patch() -> Patch:
    """Make ``F.cross_entropy`` and ``nn.CrossEntropyLoss`` use the fused op.

    For the whole process, from now on: until `unpatch`, or to the end of the block where it is
    called as ``with softreg_ext.patch():``. Blocks nest, and may overlap in several threads; the
    last to end restores the original. A second call changes nothing.

    The original still runs where it takes more than the fused op or means something else: tensors
    that are not on the CPU, tensor subclasses, other dtypes, a weight that requires grad, a
    negative smoothing. Only calls by way of the module are changed (``F.cross_entropy(...)``, as in
    ``nn.CrossEntropyLoss`` and in most libraries): a name imported from it before stays the
    original's, and code that ``torch.compile`` has already compiled stays as it is. TorchScript
    cannot compile ``nn.CrossEntropyLoss`` once it has seen the fused op in it.

    Returns:
        A context manager that undoes this call.
    """
    return Patch().__enter__()


def unpatch() -> None:
    """Undo every `patch`, open ``with`` blocks included."""
    with _lock:
        _active.clear()
        _restore_if_unused()
