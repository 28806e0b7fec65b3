"""The loss and its gradient from the definition, in extended precision, and the accuracy rule."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Reference:
    loss: np.ndarray
    grad: np.ndarray
    grad_target: np.ndarray


def extended(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy().astype(np.longdouble)


def rows_of(x: np.ndarray) -> np.ndarray:
    """(C), (N, C) or (N, C, d1, ..., dK) as (rows, C)."""
    return x[None] if x.ndim == 1 else np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    grad_output: Tensor | None = None,
) -> Reference:
    """The loss and its gradients times `grad_output` (default: ones)."""
    given = extended(logits)
    x = rows_of(given)
    rows, classes = x.shape
    w = np.ones(classes, np.longdouble) if weight is None else extended(weight)
    smooth = np.longdouble(label_smoothing)
    if target.is_floating_point():
        q, row_weight = rows_of(extended(target)), np.ones(rows, np.longdouble)
        counts = np.ones(rows, bool)
    else:
        labels = target.cpu().numpy().astype(np.int64).reshape(-1)
        counts = labels != ignore_index
        safe = np.where(counts, labels, 0)
        q, row_weight = np.zeros_like(x), w[safe] * counts
        q[np.arange(rows), safe] = 1
    # what multiplies each class's log-probability
    coefficients = -w * ((1 - smooth) * q + smooth / classes) * counts[:, None]
    shifted = x - x.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = (coefficients * log_softmax).sum(axis=1)

    upstream = np.ones((), np.longdouble) if grad_output is None else extended(grad_output)
    if reduction == "mean":
        loss, upstream = loss.sum() / row_weight.sum(), upstream / row_weight.sum()
    elif reduction == "sum":
        loss = loss.sum()
    upstream = np.broadcast_to(upstream.reshape(-1), (rows,))[:, None]
    grad = coefficients - np.exp(log_softmax) * coefficients.sum(axis=1, keepdims=True)
    grad_target = -w * (1 - smooth) * log_softmax

    def shaped(by_rows: np.ndarray) -> np.ndarray:
        if given.ndim == 1:
            return by_rows[0]
        positions = (given.shape[0], *given.shape[2:], classes)
        return np.moveaxis(by_rows.reshape(positions), -1, 1)

    if reduction == "none":
        loss = loss.reshape(given.shape[:1] + given.shape[2:]) if given.ndim > 1 else loss[0]
    return Reference(loss, shaped(grad * upstream), shaped(grad_target * upstream))


@dataclass
class Draw:
    """One result of ours and of PyTorch's beside the exact one.

    `unit` is the size of what was rounded, by default that of the largest exact value: a gradient
    p - 1 is rounded at the size of 1, however close to 0 it comes.
    """

    ours: Tensor
    torchs: Tensor
    exact: np.ndarray
    unit: float | None = None

    def errors(self) -> tuple[float, float]:
        """Our largest error and PyTorch's, in roundings of the dtype."""
        assert self.ours.shape == self.torchs.shape
        assert self.ours.dtype == self.torchs.dtype
        if self.exact.size == 0:
            return 0.0, 0.0
        size = np.abs(self.exact).max() if self.unit is None else self.unit
        rounding = torch.finfo(self.ours.dtype).eps * size
        errors = [largest_error(extended(x), self.exact) for x in (self.ours, self.torchs)]
        return tuple(float(e / rounding) if e > 0 else 0.0 for e in errors)


def at_own_size(ours: Tensor, torchs: Tensor, exact: np.ndarray) -> Draw:
    """A draw in which each value is rounded at its own size: all are moved to [1/2, 1)."""
    mantissas, exponents = np.frexp(exact)
    moved = (
        torch.from_numpy(np.ldexp(x.detach().cpu().numpy(), -exponents)) for x in (ours, torchs)
    )
    return Draw(*moved, mantissas, 1.0)


def largest_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Infinite where one of the two is no number and the other is not the same."""
    are_same = (found == exact) | (np.isnan(found) & np.isnan(exact))
    with np.errstate(invalid="ignore"):
        errors = np.where(are_same, 0, np.abs(found - exact))
    return float(np.where(np.isnan(errors), np.inf, errors).max())


def assert_as_accurate(*draws: Draw) -> None:
    """Our error is no larger than PyTorch's own at this dtype, plus one rounding.

    Over several draws: how one of them happens to round is luck, on either side. Where PyTorch's
    has no number, ours is to have one all the same.
    """
    ours, torchs = (max(errors) for errors in zip(*(draw.errors() for draw in draws), strict=True))
    assert np.isfinite(ours) and ours <= torchs + 1, f"{ours:.2f} roundings, PyTorch {torchs:.2f}"
