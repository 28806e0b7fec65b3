"""Rows of a few vectors, which are taken up as many at a time as a vector has lanes."""

import math

import pytest
import torch
from cases import DTYPES, check_against_torch, loss_and_grad, make_case

import softreg_ext

# From the fewest on, beside the most: of float64 (AVX2, AVX-512), float32, half types.
CLASSES = [33, 48, 64, 65, 80, 81, 112, 113, 160, 161, 224, 225, 512, 513]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy(dtype: torch.dtype, classes: int) -> None:
    """The last rows are a part of a vector."""
    logits, target, weight = make_case(263, classes, dtype)
    target[2::3] = -100
    upstream = torch.linspace(0.5, 1.5, 263).to(dtype)
    for options in ({}, {"weight": weight, "label_smoothing": 0.1}):
        check_against_torch(logits, target, upstream, reduction="none", **options)


@pytest.mark.parametrize("classes", CLASSES)
def test_every_label(classes: int) -> None:
    logits = make_case(classes, classes, torch.float64)[0]
    target = torch.arange(classes)
    loss, grad = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, reduction="none")
    log_softmax = logits.log_softmax(1)
    torch.testing.assert_close(loss, -log_softmax.diagonal())
    torch.testing.assert_close(grad, log_softmax.exp() - torch.eye(classes, dtype=torch.float64))


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_rows(dtype: torch.dtype, classes: int) -> None:
    """They have the same bits whether or not others come after them."""
    logits, target, _ = make_case(64, classes, dtype)
    target[4::5] = -100
    all_rows = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, reduction="none")
    for rows in (1, 7, 16, 33):
        these = logits[:rows], target[:rows]
        first = loss_and_grad(softreg_ext.cross_entropy, *these, None, reduction="none")
        for of_first, of_all in zip(first, all_rows, strict=True):
            assert torch.equal(of_first, of_all[:rows])


@pytest.mark.parametrize("classes", [40, 80, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ignored_rows_of_nan(dtype: torch.dtype, classes: int) -> None:
    """Nothing of them comes into rows beside them, but lse where it is asked for."""
    logits, target, _ = make_case(70, classes, dtype)
    ignored = torch.arange(70) % 7 < 3
    target[ignored] = -100
    expected = loss_and_grad(softreg_ext.cross_entropy, logits, target, None)
    logits[ignored] = math.nan
    results = loss_and_grad(softreg_ext.cross_entropy, logits, target, None)
    for result, without_nan in zip(results, expected, strict=True):
        assert torch.equal(result, without_nan)
    _, lse = softreg_ext.cross_entropy(logits, target, return_lse=True)
    assert torch.equal(lse.isnan(), ignored)
