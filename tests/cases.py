"""Inputs of the loss, and how ours is held against PyTorch's and the definition."""

import os
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import softreg_ext

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Where the tests make their tensors (conftest.py); the definition is computed on the CPU.
DEVICE = torch.device(os.environ.get("SOFTREG_DEVICE", "cpu"))


def random_source(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def make_case(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = random_source(rows * 10007 + classes)
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


def several(grad_output: Tensor | None) -> list[Tensor | None]:
    """Some multiples of it: see `oracle.assert_as_accurate`."""
    if grad_output is None:
        return [None]
    return [grad_output, *(grad_output * factor for factor in (0.618034, 1.414214, 2.645751))]


def check_changes_are_noticed(logits: Tensor, target: Tensor) -> None:
    """The backward pass reads the logits again, or vouches for a gradient that read them."""
    doubled = logits.detach().requires_grad_() * 2
    loss = softreg_ext.cross_entropy(doubled, target)
    with torch.no_grad():
        doubled.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def check_same_bits_for_any_thread_count(logits: Tensor, target: Tensor) -> None:
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(loss_and_grad(softreg_ext.cross_entropy, logits, target, None))
    torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def mean_divides_by(target: Tensor, weight: Tensor | None, ignore_index: int) -> float:
    counted = target[target != ignore_index].long()
    total = counted.numel() if weight is None else float(weight[counted].sum(dtype=torch.double))
    return total if total > 0 else 1.0


def check_against_torch(
    logits: Tensor, target: Tensor, grad_output: Tensor | None = None, **options: Any
) -> None:
    weight = options.get("weight")
    draws = []
    for upstream in several(grad_output):
        ours = loss_and_grad(softreg_ext.cross_entropy, logits, target, upstream, **options)
        torchs = loss_and_grad(F.cross_entropy, logits, target.long(), upstream, **options)
        exact = oracle.cross_entropy(logits, target, grad_output=upstream, **options)
        unit = 1.0 if upstream is None or not upstream.numel() else float(upstream.abs().max())
        unit *= 1.0 if weight is None else float(weight.max())
        if options.get("reduction", "mean") == "mean":
            unit /= mean_divides_by(target, weight, options.get("ignore_index", -100))
        draws.append(oracle.Draw(ours[1], torchs[1], exact.grad, unit))
    oracle.assert_as_accurate(oracle.Draw(ours[0], torchs[0], exact.loss))
    oracle.assert_as_accurate(*draws)
