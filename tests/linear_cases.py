"""Inputs of a linear layer and its loss in one, held against the two ops apart."""

from collections.abc import Callable, Iterable
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from cases import random_source
from measure import peak_bytes
from torch import Tensor

import softreg_ext

ROWS, FEATURES, CLASSES = 37, 6, 50
HALF_TYPES = [torch.bfloat16, torch.float16]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "ignore_index": 3},
    {"z_loss": 0.01, "logit_scale": 0.7, "softcap": 5.0},
]


def make_inputs(
    dtype: torch.dtype = torch.float64, dims: tuple[int, ...] = (), bias: bool = True
) -> tuple[list[Tensor], Tensor]:
    """Input, weight and bias; labels, some of which are ignored by default."""
    source = random_source(0)
    leaves = [
        torch.randn(ROWS, FEATURES, generator=source),
        torch.randn(CLASSES, *dims, FEATURES, generator=source),
        torch.randn(CLASSES, *dims, generator=source),
    ][: 3 if bias else 2]
    target = torch.randint(CLASSES, (ROWS, *dims), generator=source)
    target[4:9] = -100
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], target


def fused(leaves: list[Tensor], target: Tensor, **options: Any) -> Any:
    bias = leaves[2] if len(leaves) > 2 else None
    return softreg_ext.linear_cross_entropy(
        leaves[0], leaves[1], target, linear_bias=bias, **options
    )


def apart(
    leaves: list[Tensor], target: Tensor, loss: Any = softreg_ext.cross_entropy, **options: Any
) -> Any:
    input, weight = leaves[:2]
    bias = leaves[2].flatten() if len(leaves) > 2 else None
    logits = F.linear(input, weight.flatten(0, -2), bias)
    return loss(logits.reshape(*input.shape[:-1], *weight.shape[:-1]), target, **options)


def results(
    function: Callable[..., Tensor], leaves: list[Tensor], target: Tensor, **options: Any
) -> list[Tensor]:
    loss = function(leaves, target, **options)
    upstream = torch.linspace(0.5, 2, max(1, loss.numel())).to(loss).reshape(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, upstream)]


def assert_as_accurate(
    ours: Iterable[Tensor], theirs: Iterable[Tensor], exact: Iterable[Tensor], terms: int = 1
) -> None:
    """In roundings of the results' dtype.

    `terms`: of the longest sums, which a product of fewer rows may take in another order. Half
    types round them but once.
    """
    for mine, other, reference in zip(ours, theirs, exact, strict=True):
        assert mine.shape == reference.shape
        draw = oracle.Draw(mine, other, oracle.extended(reference))
        # One rounding more than the oracle's rule: sums over chunks are rounded on their way.
        error, of_theirs = draw.errors()
        walk = 1 if mine.dtype.itemsize == 2 else terms**0.5
        assert error <= of_theirs + 1 + walk, f"{error:.2f} roundings, apart {of_theirs:.2f}"


def check(
    leaves: list[Tensor],
    target: Tensor,
    weight: Tensor | None = None,
    terms: int = 1,
    **options: Any,
) -> None:
    """As accurate as the two ops apart, held against those in float64."""
    if leaves[0].dtype == torch.float64:  # no more exact itself: the same sums in another order
        terms = max(terms, CLASSES)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    is_half = target.dtype in (torch.bfloat16, torch.float16)
    of_class = {} if weight is None else {"weight": weight}
    exact_of_class = {} if weight is None else {"weight": weight.double()}
    exact = results(
        apart, exact_leaves, target.double() if is_half else target, **exact_of_class, **options
    )
    ours = results(fused, leaves, target, **of_class, **options)
    theirs = results(apart, leaves, target, **of_class, **options)
    assert_as_accurate(ours, theirs, exact, terms)


def peak_of_a_step(loss: Callable[[list[Tensor], Tensor], Tensor]) -> int:
    """Megabytes, with gradients, where all logits in float32 take 262."""
    input, weight = torch.randn(2048, 8), torch.randn(32000, 8)
    target = torch.randint(32000, (2048,))
    leaves = [input.requires_grad_(), weight.requires_grad_()]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(leaves, target), leaves)

    step()
    return peak_bytes(step) >> 20


def is_in_chunks(loss: Tensor) -> bool:
    assert loss.grad_fn is not None
    return "LinearCrossEntropy" in loss.grad_fn.name()
