"""What the losses have to say about the types of their arguments."""

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


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


def as_int(op: str, name: str, value: Any) -> int:
    """What passes for an ``int`` with PyTorch: no bool, but NumPy's and tensors of one integer.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]  # which a SymInt stands for
    one: Any = torch.as_tensor(value) if isinstance(value, (np.integer, np.ndarray)) else value
    is_int = isinstance(one, Tensor) and not (
        one.is_floating_point() or one.is_complex() or one.dtype == torch.bool
    )
    if not is_int or one.numel() != 1:
        _complain(op, name, "an int", value)
    return int(one)


def is_dtensor(x: object) -> "TypeGuard[DTensor]":
    """Without loading what whoever has a DTensor has loaded."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


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
