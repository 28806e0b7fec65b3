"""What the losses have to say about the types of their arguments."""

import sys
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from ._extension import BUILD

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_DEVICES = ("cpu", "cuda", "meta") if BUILD.cuda else ("cpu", "meta")


def legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """What the two deprecated arguments mean together, with PyTorch's warning.

    Spelled out, for torch.compile cannot trace PyTorch's own function.
    """
    means = size_average is None or size_average
    reduction = "none" if reduce is not None and not reduce else "mean" if means else "sum"
    if not torch.compiler.is_compiling():
        warnings.warn(
            "size_average and reduce args will be deprecated, "
            f"please use reduction='{reduction}' instead.",
            stacklevel=3,
        )
    return reduction


def reduction_code(op: str, reduction: object) -> int:
    """The number that the ops' schemas have for a reduction: PyTorch's own.

    Raises:
        ValueError: there is none.
    """
    try:
        return _Reduction.get_enum(reduction)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(
            f"{op}: reduction must be 'none', 'mean' or 'sum', but got {reduction!r}"
        ) from None


def _complain(op: str, name: str, expected: str, value: object) -> NoReturn:
    raise TypeError(
        f"{op}: {name} must be {expected}, but got {value!r:.80} ({type(value).__name__})"
    ) from None


def index_of_ignored(op: str, value: Any) -> int:
    """What passes for an ``int`` with PyTorch: no bool, but NumPy's and tensors of one integer.

    Returns:
        An int, or a SymInt.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, Tensor):
        is_one = value.numel() == 1
    else:
        is_one = isinstance(value, (np.integer, np.ndarray)) and value.ndim == 0
    found = value.item() if is_one else value  # to a tracer a symbol, which int() would fix
    if isinstance(found, bool) or not isinstance(found, (int, torch.SymInt)):
        _complain(op, "ignore_index", "an int", value)
    return found  # type: ignore[return-value]


def check_chunking(op: str, value: object) -> None:
    """What PyTorch's linear_cross_entropy takes as ``options``.

    Raises:
        TypeError: it is none, which is anything where PyTorch has no such function.
    """
    known = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if known is None or not isinstance(value, known):
        _complain(op, "options", "a torch.nn.LinearCrossEntropyOptions or None", value)


def is_dtensor(x: object) -> "TypeGuard[DTensor]":
    """Without loading what whoever has a DTensor has loaded."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def densified(target: Tensor) -> Tensor:
    """Sparse probabilities as the ops take them; any other target as it is."""
    is_sparse = isinstance(target, Tensor) and target.layout is not torch.strided
    return target.to_dense() if is_sparse and target.is_floating_point() else target


def explain_missing_kernel(op: str, tensors: dict[str, Tensor | None]) -> None:
    """Raise an error that names the argument; the dispatcher's own lists all devices there are.

    Raises:
        NotImplementedError: there are no kernels for an argument's device, or it is sparse.
    """
    for name, x in tensors.items():
        if x is not None and x.device.type not in _DEVICES:
            reason = f" ({BUILD.cuda_reason})" if x.device.type == "cuda" else ""
            raise NotImplementedError(
                f"{op}: {name} is on {x.device}, for which this build has no kernels{reason}; "
                "softreg_ext.patch() leaves such tensors to PyTorch's own loss"
            ) from None
        if x is not None and x.layout is not torch.strided:
            raise NotImplementedError(
                f"{op}: {name} must be dense, but its layout is {x.layout}"
            ) from None


class Options(NamedTuple):
    """What both losses take besides tensors and the reduction, in the order of the ops' schemas."""

    ignore_index: int
    label_smoothing: object
    z_loss: object
    logit_scale: object
    softcap: object
    return_lse: object


def check_types(
    op: str, tensors: dict[str, object], optional_tensors: dict[str, object], options: Options
) -> None:
    """Raise an error that names the argument; a schema's or pybind11's own lists the signature.

    Raises:
        TypeError: an argument is no tensor, number or bool where it should be.
        ValueError: ``ignore_index``, an integer, does not fit in 64 bits.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            _complain(op, name, "a Tensor", value)
    for name, value in optional_tensors.items():
        if value is not None and not isinstance(value, Tensor):
            _complain(op, name, "a Tensor", value)
    if not -(2**63) <= options.ignore_index < 2**63:
        raise ValueError(f"{op}: ignore_index {options.ignore_index} does not fit in 64 bits")
    for name in ("label_smoothing", "z_loss", "logit_scale", "softcap"):
        value = getattr(options, name)
        if not isinstance(value, (int, float)) and not (name == "softcap" and value is None):
            _complain(op, name, "a float", value)
    if not isinstance(options.return_lse, bool):
        _complain(op, "return_lse", "a bool", options.return_lse)
