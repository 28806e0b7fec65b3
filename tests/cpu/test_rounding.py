"""Half types are float32 inside: a GPU's have an exponential of their own, the CPU's do not."""

import math

import pytest
import torch
from cases import make_case
from torch import Tensor

import softreg_ext


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [10, 100, 1000, 5003])
def test_gradients_round_to_even(dtype: torch.dtype, classes: int) -> None:
    """Those of half types are those of float32, rounded once, as torch rounds them; NaN stays."""
    logits, target, _ = make_case(64, classes, dtype)
    logits[7, 3] = math.nan

    def gradient(leaf: Tensor) -> Tensor:
        leaf.requires_grad_()
        softreg_ext.cross_entropy(leaf, target, reduction="sum").backward()
        assert leaf.grad is not None
        return leaf.grad

    rounded = gradient(logits.float()).to(dtype)
    assert rounded[7].isnan().all()
    torch.testing.assert_close(gradient(logits), rounded, rtol=0, atol=0, equal_nan=True)
