"""Sums over rows round once, whatever the blocks and lanes that they are made of."""

import math

import pytest
import torch

import softreg_ext


@pytest.mark.parametrize(("classes", "rows_alike"), [(10, 8), (10, 16), (1000, 1)])
def test_losses_that_cancel(classes: int, rows_alike: int) -> None:
    """Blocks hand on what their own sums have rounded off: here all that is not cancelled."""
    logits = torch.zeros(4096, classes, dtype=torch.float64)
    weight = torch.ones(classes, dtype=torch.float64)
    weight[1], weight[2] = 2.0**60, -(2.0**60)
    target = torch.tensor([1, 0, 0, 2]).repeat_interleave(rows_alike)
    target = target.repeat(4096 // len(target))
    losses = softreg_ext.cross_entropy(logits, target, weight, reduction="none")
    total = softreg_ext.cross_entropy(logits, target, weight, reduction="sum")
    assert float(total) == pytest.approx(math.fsum(losses.tolist()), rel=1e-12)
