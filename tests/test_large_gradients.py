"""Gradients of 64 MB and more are stored past the caches: the same bits all the same."""

import pytest
import torch
from cases import DTYPES, make_case

import softreg_ext

STREAMED_BYTES = 64 << 20


@pytest.mark.parametrize("classes", [101, 1001, 32003])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"softcap": 3.0}], ids=str)
def test_bits_of_the_parts(dtype: torch.dtype, classes: int, options: dict[str, float]) -> None:
    rows = STREAMED_BYTES // (classes * dtype.itemsize) + 1
    logits, target, _ = make_case(rows, classes, dtype)
    target[::7] = -100

    def grad(begin: int, end: int) -> torch.Tensor:
        leaf = logits[begin:end].clone().requires_grad_()
        loss = softreg_ext.cross_entropy(leaf, target[begin:end], reduction="sum", **options)
        return torch.autograd.grad(loss, leaf)[0]

    whole = grad(0, rows)
    assert whole.nbytes >= STREAMED_BYTES
    for begin in range(0, rows, rows // 3):
        assert torch.equal(whole[begin : begin + rows // 3], grad(begin, begin + rows // 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_the_targets_gradient(dtype: torch.dtype) -> None:
    classes = 5001
    rows = STREAMED_BYTES // (classes * dtype.itemsize) + 1
    logits = make_case(rows, classes, dtype)[0]
    probabilities = torch.softmax(logits.flip(0), 1)

    def grad(begin: int, end: int) -> torch.Tensor:
        leaf = probabilities[begin:end].clone().requires_grad_()
        loss = softreg_ext.cross_entropy(logits[begin:end], leaf, reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    whole = grad(0, rows)
    for begin in range(0, rows, rows // 3):
        assert torch.equal(whole[begin : begin + rows // 3], grad(begin, begin + rows // 3))
