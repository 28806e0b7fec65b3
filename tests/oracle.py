"""The loss and its gradient from the definition, in extended precision, and the accuracy rule."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Reference:
    loss: np.ndarray
    grad: np.ndarray


def extended(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy().astype(np.longdouble)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    grad_output: Tensor | None = None,
) -> Reference:
    """Loss of (N, C) logits, and its gradient times `grad_output` (default: ones)."""
    x = extended(logits)
    rows, classes = x.shape
    labels = target.numpy().astype(np.int64)
    counts = labels != ignore_index
    safe = np.where(counts, labels, 0)
    w = np.ones(classes, np.longdouble) if weight is None else extended(weight)
    shifted = x - x.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    # d loss / d log_softmax: what each class's log-probability is multiplied by.
    smooth = np.longdouble(label_smoothing)
    coefficients = np.tile(-smooth / classes * w, (rows, 1))
    coefficients[np.arange(rows), safe] -= (1 - smooth) * w[safe]
    coefficients[~counts] = 0
    loss = (coefficients * log_softmax).sum(axis=1)

    upstream = np.ones((), np.longdouble) if grad_output is None else extended(grad_output)
    if reduction == "mean":
        total = w[safe][counts].sum()
        loss, upstream = loss.sum() / total, upstream / total
    elif reduction == "sum":
        loss = loss.sum()
    softmax = np.exp(log_softmax)
    grad = coefficients - softmax * coefficients.sum(axis=1, keepdims=True)
    return Reference(loss, grad * np.broadcast_to(upstream, (rows,))[:, None])


def assert_as_accurate(
    ours: Tensor, torchs: Tensor, exact: np.ndarray, unit: float | None = None
) -> None:
    """Our error is no larger than PyTorch's own at this dtype, plus one rounding.

    `unit` is the size of what was rounded; by default that of the largest exact value. A gradient
    p - 1 is rounded at the size of 1, however close to 0 it comes.
    """
    assert ours.shape == torchs.shape
    assert ours.dtype == torchs.dtype
    if exact.size == 0:
        return
    our_error = np.abs(extended(ours) - exact).max()
    torch_error = np.abs(extended(torchs) - exact).max()
    size = np.abs(exact).max() if unit is None else unit
    assert our_error <= torch_error + torch.finfo(ours.dtype).eps * size, (
        f"error {our_error:.3g}, PyTorch's {torch_error:.3g}"
    )
