"""Logits (N, C, d1, ..., dK): every layout in memory, and labels of every shape."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    check_against_torch,
    check_same_bits_for_any_thread_count,
    loss_and_grad,
    random_source,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import softreg_ext

# One position, part of a vector, whole vectors, rows that cross samples; K = 1, 2, 3.
SHAPES = [(3, 5, 1), (3, 5, 7), (2, 40, 16), (2, 3, 4, 5), (3, 100, 3, 11), (2, 7, 2, 3, 17)]


def make_images(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = random_source(sum(shape))
    logits = (torch.randn(shape, generator=generator) * 3).to(dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target.view(-1)[::7] = -100
    return logits, target


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_matches_torch(
    dtype: torch.dtype, shape: tuple[int, ...], reduction: str, smoothing: float, weighted: bool
) -> None:
    logits, target = make_images(shape, dtype)
    weight = (torch.rand(shape[1], generator=random_source(2)) + 0.5).to(dtype)
    grad_shape = target.shape if reduction == "none" else ()
    grad_output = torch.randn(grad_shape, generator=random_source(1)).to(dtype)
    check_against_torch(
        logits,
        target,
        grad_output,
        reduction=reduction,
        label_smoothing=smoothing,
        weight=weight if weighted else None,
    )


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def spatially_transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (1, 2, 0, 1))[:, :, : x.shape[2], 1:-2]


def from_more_channels(x: Tensor) -> Tensor:
    return torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]]


def every_other_sample(x: Tensor) -> Tensor:
    return channels_last(torch.cat([x, x]).view(2, *x.shape).transpose(0, 1).flatten(0, 1))[::2]


@pytest.mark.parametrize(
    "layout",
    [channels_last, spatially_transposed, padded, from_more_channels, every_other_sample],
)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 100, 3, 11), (1, 6, 5, 4)], ids=str)
def test_layouts(layout: Any, shape: tuple[int, ...]) -> None:
    logits, target = make_images(shape, torch.float32)
    check_against_torch(layout(logits), target, reduction="none")
    transposed = target.transpose(1, 2).contiguous().transpose(1, 2)
    check_against_torch(layout(logits), transposed, label_smoothing=0.1)


@pytest.mark.parametrize("layout", [channels_last, lambda x: x])
def test_gradient_keeps_the_layout(layout: Any) -> None:
    logits, target = make_images((2, 3, 4, 5), torch.float32)
    _, grad = loss_and_grad(softreg_ext.cross_entropy, layout(logits), target, None)
    assert grad.stride() == layout(logits).stride()


def test_expanded_logits_and_grad_output() -> None:
    logits, target = make_images((2, 3, 4, 5), torch.float32)
    check_against_torch(logits[:1].expand(2, 3, 4, 5), target)
    check_against_torch(logits[:, :, :1].expand(2, 3, 4, 5), target)
    check_against_torch(logits, target, torch.tensor(0.3).expand(2, 4, 5), reduction="none")
    check_against_torch(logits, target, torch.randn(2, 5, 4).mT, reduction="none")


@pytest.mark.parametrize("shape", [(7, 5, 1), (3, 5, 6, 1)], ids=str)
def test_last_dimension_of_size_one(shape: tuple[int, ...]) -> None:
    """Its stride means nothing, and is not the one from row to row."""
    logits, target = make_images(shape, torch.float32)
    upstream = torch.randn(target.shape, generator=random_source(1))
    odd = [x.as_strided(x.shape, (*x.stride()[:-1], 7)) for x in (target, upstream)]
    assert all(x.is_contiguous() for x in odd)
    check_against_torch(logits, *odd, reduction="none")


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 3, 0, 4)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_rows(shape: tuple[int, ...], reduction: str) -> None:
    logits, target = torch.empty(shape), torch.empty((shape[0], *shape[2:])).long()
    ours = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, reduction=reduction)
    torchs = loss_and_grad(F.cross_entropy, logits, target, None, reduction=reduction)
    torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize("weight_shape", [(1, 5), (5, 1), (1, 5, 1)], ids=str)
def test_shapes_of_weight(weight_shape: tuple[int, ...]) -> None:
    """F.cross_entropy counts a weight's entries here, and takes any shape of them."""
    logits, target = make_images((3, 5, 7), torch.float64)
    weight = torch.rand(5, dtype=torch.float64, generator=random_source(2))
    shaped = weight.reshape(weight_shape)
    for reduction in ("none", "mean"):
        of_shape, flat, theirs = (
            loss_and_grad(loss, logits, target, None, weight=w, reduction=reduction)
            for loss, w in (
                (softreg_ext.cross_entropy, shaped),
                (softreg_ext.cross_entropy, weight),
                (F.cross_entropy, shaped),
            )
        )
        assert all(map(torch.equal, of_shape, flat))
        torch.testing.assert_close(of_shape, theirs)
    hessians = (
        torch.func.hessian(lambda x, w=w: softreg_ext.cross_entropy(x, target, w))(logits)
        for w in (weight, shaped)
    )
    torch.testing.assert_close(*hessians)


def test_shapes_that_no_weight_has() -> None:
    logits, target = make_images((3, 5, 7), torch.float32)
    cases: list[tuple[Tensor, Tensor, float]] = [
        (logits, target, 0.1),
        (logits, logits.softmax(1), 0.0),
        (logits[..., 0], target[..., 0], 0.0),
    ]
    for input, labels, smoothing in cases:
        for loss in (F.cross_entropy, softreg_ext.cross_entropy):
            with pytest.raises(RuntimeError):
                loss(input, labels, torch.ones(1, 5), label_smoothing=smoothing)


@pytest.mark.index_error
def test_bad_label_names_its_row() -> None:
    logits, target = make_images((2, 40, 16), torch.float32)
    target[1, 3] = 40
    with pytest.raises(IndexError, match="target 40 at row 19 is out of bounds for 40 classes"):
        softreg_ext.cross_entropy(logits, target)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck(reduction: str, smoothing: float) -> None:
    logits, target = make_images((2, 3, 2, 3), torch.float64)
    logits.requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        return softreg_ext.cross_entropy(logits, target, **options)

    assert gradcheck(loss, logits, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, logits)


@pytest.mark.parametrize("classes", [3, 100])
def test_same_bits_for_any_thread_count(classes: int) -> None:
    logits, target = make_images((3, classes, 50, 21), torch.float32)
    check_same_bits_for_any_thread_count(logits, target)
