"""Inputs of the loss, and how ours is held against PyTorch's and the definition."""

from typing import Any

import oracle
import torch
import torch.nn.functional as F
from torch import Tensor

import softreg_ext

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def make_case(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 10007 + classes)
    logits = (torch.randn(rows, classes, generator=generator) * 3).to(dtype)
    target = torch.randint(classes, (rows,), generator=generator)
    weight = (torch.rand(classes, generator=generator) + 0.5).to(dtype)
    return logits, target, weight


def loss_and_grad(
    function: Any, logits: Tensor, target: Tensor, grad_output: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    loss = function(leaf, target, **options)
    loss.backward(torch.ones_like(loss) if grad_output is None else grad_output)
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def check_against_torch(
    logits: Tensor, target: Tensor, grad_output: Tensor | None = None, **options: Any
) -> None:
    ours = loss_and_grad(softreg_ext.cross_entropy, logits, target, grad_output, **options)
    torchs = loss_and_grad(F.cross_entropy, logits, target.long(), grad_output, **options)
    exact = oracle.cross_entropy(logits, target, grad_output=grad_output, **options)
    oracle.assert_as_accurate(ours[0], torchs[0], exact.loss)
    upstream = 1.0 if grad_output is None or not grad_output.numel() else grad_output.abs().max()
    weight = options.get("weight")
    unit = float(upstream) * (1.0 if weight is None else float(weight.max()))
    if options.get("reduction") == "mean":
        unit /= max(1.0, float((target != options.get("ignore_index", -100)).sum()))
    oracle.assert_as_accurate(ours[1], torchs[1], exact.grad, unit)
