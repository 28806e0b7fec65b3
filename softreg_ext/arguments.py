"""What the losses have to say about the types of their arguments."""

import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def reduction_code(op: str, reduction: object) -> int:
    """The number that the op's schema has for a reduction.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction must be 'none', 'mean' or 'sum', but got {reduction!r}")
    return _REDUCTIONS[reduction]


def is_dtensor(x: object) -> "TypeGuard[DTensor]":
    """Without loading what whoever has a DTensor has loaded."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


class Options(NamedTuple):
    """What both losses take besides tensors and the reduction, in the order of the ops' schemas."""

    ignore_index: object
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
        TypeError: an argument is no tensor, integer, number or bool where it should be.
        ValueError: ``ignore_index`` does not fit in 64 bits.
    """

    def complain(name: str, expected: str, value: object) -> NoReturn:
        raise TypeError(
            f"{op}: {name} must be {expected}, but got {value!r:.80} ({type(value).__name__})"
        ) from None

    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            complain(name, "a Tensor", value)
    for name, value in optional_tensors.items():
        if value is not None and not isinstance(value, Tensor):
            complain(name, "a Tensor", value)
    if not isinstance(options.ignore_index, int):
        complain("ignore_index", "an int", options.ignore_index)
    if not -(2**63) <= options.ignore_index < 2**63:
        raise ValueError(f"{op}: ignore_index {options.ignore_index} does not fit in 64 bits")
    for name in ("label_smoothing", "z_loss", "logit_scale", "softcap"):
        value = getattr(options, name)
        if not isinstance(value, (int, float)) and not (name == "softcap" and value is None):
            complain(name, "a float", value)
    if not isinstance(options.return_lse, bool):
        complain("return_lse", "a bool", options.return_lse)
