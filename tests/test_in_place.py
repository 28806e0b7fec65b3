"""The gradient in the logits' place has the bits of the one beside them."""

import pytest
import torch
from cases import DTYPES, random_source
from torch import Tensor

OPS = torch.ops.softreg_ext
NONE, MEAN = 0, 1
# Lanes, rows together, along a row, few long rows; images; past 64 MB, where other gradients go
# past the caches.
SHAPES = [(40, 7), (70, 100), (33, 1001), (3, 70001), (2, 5, 19, 33), (5, 3, 1), (1700, 10007)]


def check(
    logits: Tensor,
    target: Tensor,
    reduction: int = MEAN,
    smoothing: float = 0.0,
    transform: tuple[float, float | None] = (1.0, None),
) -> None:
    options = (None, reduction, -100, smoothing, 0.0, *transform)
    loss, _, state, total_weight = OPS.cross_entropy_forward(logits, target, *options, False)
    saved = (logits, target, state, total_weight, *options)
    upstream = torch.rand(loss.shape, generator=random_source(1)).to(loss.dtype)
    beside = OPS.cross_entropy_backward(upstream, None, *saved)
    assert not torch.equal(beside, logits)
    OPS.cross_entropy_backward_(upstream, None, *saved)
    assert torch.equal(logits, beside)


@pytest.mark.parametrize("transform", [(1.0, None), (0.7, None), (0.7, 3.0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits(
    shape: tuple[int, ...], dtype: torch.dtype, transform: tuple[float, float | None]
) -> None:
    logits = torch.randn(shape, generator=random_source(0)).to(dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=random_source(0))
    target[::5] = -100
    check(logits, target, transform=transform)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_targets(dtype: torch.dtype) -> None:
    logits = torch.randn(9, 300, generator=random_source(0)).to(dtype)
    target = torch.randint(300, (9,), generator=random_source(0))
    check(logits.clone(), target, NONE, 0.1)
    check(logits.clone(), torch.softmax(logits.flip(0), 1), NONE)
    check(logits, torch.softmax(logits.flip(0).double(), 1), NONE)


def test_rows_that_share_memory_are_refused() -> None:
    with pytest.raises(RuntimeError, match="single memory location"):
        check(torch.randn(1, 5).expand(4, 5), torch.zeros(4).long())


def test_other_strides() -> None:
    memory = torch.randn(50, 60, generator=random_source(0))
    target = torch.randint(20, (50,), generator=random_source(0))
    check(memory[:, 3:23], target)
    check(memory[:, 3:43], target)
    check(memory.view(60, 50).t()[:, 1:21], target)
