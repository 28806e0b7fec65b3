"""What the losses have to say about arguments of the wrong type."""

from typing import NoReturn

from torch import Tensor

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def reduction_code(op: str, reduction: object) -> int:
    """The number that the op's schema has for a reduction.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction must be 'none', 'mean' or 'sum', but got {reduction!r}")
    return _REDUCTIONS[reduction]


def check_types(
    op: str,
    tensors: dict[str, object],
    optional_tensors: dict[str, object],
    ignore_index: object,
    factors: dict[str, object],
    return_lse: object,
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
    if not isinstance(ignore_index, int):
        complain("ignore_index", "an int", ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"{op}: ignore_index {ignore_index} does not fit in 64 bits")
    for name, value in factors.items():
        if not isinstance(value, (int, float)) and not (name == "softcap" and value is None):
            complain(name, "a float", value)
    if not isinstance(return_lse, bool):
        complain("return_lse", "a bool", return_lse)
