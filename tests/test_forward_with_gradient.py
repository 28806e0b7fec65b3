"""The op that computes loss and gradient in one walk: the bits of the two that it stands for."""

import math
from typing import Any

import pytest
import torch
from cases import DEVICE, DTYPES, make_case
from torch import Tensor
from torch.library import opcheck

OPS = torch.ops.softreg_ext
PLAIN = (None, 1, -100, 0.0, 0.0, 1.0, None)  # what the ops take after the target


def both_ways(
    logits: Tensor, target: Tensor, *options: Any, return_lse: bool = False, upstream: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The gradient by the one op and by the two, which otherwise agree."""
    arguments = (logits, target, *options)
    *early, grad = OPS.cross_entropy_forward_with_gradient(*arguments, return_lse, upstream)
    late = OPS.cross_entropy_forward(*arguments, return_lse)
    for a, b in zip(early, late, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    grad_loss = torch.full_like(late[0], upstream)
    saved = late[2:]
    return grad, OPS.cross_entropy_backward(grad_loss, None, logits, target, *saved, *options)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", [0, 1, 2], ids=["none", "mean", "sum"])
@pytest.mark.parametrize(("rows", "classes"), [(37, 3), (37, 40), (37, 2500), (3, 65537)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits(
    dtype: torch.dtype, rows: int, classes: int, reduction: int, smoothing: float, weighted: bool
) -> None:
    logits, target, weight = make_case(rows, classes, dtype)
    target[::5] = -100
    options = (weight if weighted else None, reduction, -100, smoothing, 0.01, 0.7, 30.0)
    for given in (target, target.short(), logits.flip(0).softmax(1)):
        early, late = both_ways(logits, given, *options, return_lse=True, upstream=0.375)
        assert torch.equal(early, late)


@pytest.mark.parametrize("transform", [(1.0, None), (0.7, None), (0.7, 30.0)], ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [40, 130, 200, 500, 2048])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_one_chunk(
    dtype: torch.dtype,
    classes: int,
    smoothing: float,
    z_loss: float,
    transform: tuple[float, float | None],
) -> None:
    """Exponentials along a row are kept, and rows written beside one another."""
    logits, target, weight = make_case(71, classes, dtype)
    target[::5] = -100
    logits[5] = float("nan")
    for of_class in (None, weight):
        options = (of_class, 1, -100, smoothing, z_loss, *transform)
        for given in (target, logits.nan_to_num().flip(0).softmax(1)):
            early, late = both_ways(logits, given, *options)
            torch.testing.assert_close(early, late, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: x[..., ::2],
    ],
    ids=["channels_last", "transposed", "sliced"],
)
def test_layouts(layout: Any) -> None:
    logits = layout(make_case(30, 48, torch.float32)[0].view(3, 10, 6, 8))
    target = make_case(3 * logits[0, 0].numel(), 10, torch.float32)[1].view(3, *logits.shape[2:])
    early, late = both_ways(logits, target, *PLAIN)
    assert torch.equal(early, late) and early.stride() == late.stride()


@pytest.mark.parametrize("positions", [64, 77], ids=["whole vectors", "a part at the end"])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_images(
    dtype: torch.dtype, smoothing: float, softcap: float | None, positions: int
) -> None:
    """Tiles follow one another: some where nothing counts, some in parts, across samples."""
    logits, target, weight = make_case(3 * positions, 7, dtype)
    logits = logits.view(3, positions, 7).movedim(2, 1).contiguous()
    target = target.view(3, positions)
    target[1, :40] = -100
    target[2, ::5] = -100
    options = (weight, 1, -100, smoothing, 0.0, 1.0, softcap)
    for given in (target, target.short(), logits.flip(0).softmax(1)):
        early, late = both_ways(logits, given, *options)
        assert torch.equal(early, late)
        early, late = both_ways(logits, given, None, *options[1:])
        assert torch.equal(early, late)


def test_gradient_in_another_layout_than_the_logits() -> None:
    """Probabilities of a wider dtype: what the kernels write has its rows side by side."""
    logits = make_case(30, 33, torch.float32)[0].view(3, 10, 3, 11)
    target = logits.double().softmax(1)
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in (logits, target)]
    early, late = both_ways(*inputs, *PLAIN)
    assert torch.equal(early, late)


def test_weights_whose_sum_depends_on_the_order() -> None:
    """The sum taken ahead is not the one that the losses are divided by."""
    logits, target, weight = make_case(64, 20, torch.float32)
    target[:] = 0
    target[16], target[48] = 1, 2
    weight[0], weight[1], weight[2] = 1, 2.0**120, -(2.0**120)
    early, late = both_ways(logits, target, weight, *PLAIN[1:])
    assert torch.equal(early, late)


def test_no_row_counts() -> None:
    logits, target, _ = make_case(37, 5, torch.float32)
    target[:] = -100
    early, late = both_ways(logits, target, *PLAIN)
    assert torch.equal(early, late) and not early.any()


@pytest.mark.parametrize("return_lse", [False, True])
def test_opcheck(return_lse: bool) -> None:
    logits, target, weight = make_case(6, 5, torch.float64)
    arguments = (logits, target, weight, *PLAIN[1:], return_lse, 0.5)
    checks = opcheck(OPS.cross_entropy_forward_with_gradient.default, arguments)
    assert set(checks.values()) == {"SUCCESS"}


def empty_report() -> Tensor:
    """Where a device can write to."""
    pinned = DEVICE.type != "cpu"
    return torch.full((2,), -1.0, dtype=torch.float64, device="cpu", pin_memory=pinned)


def read(report: Tensor) -> list[float]:
    if DEVICE.type != "cpu":
        torch.cuda.synchronize()
    return report.tolist()


def upstream_of(loss: Tensor, value: float) -> Tensor:
    return torch.tensor(value, dtype=loss.dtype).expand_as(loss)


@pytest.mark.parametrize("reduction", [0, 1, 2], ids=["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(37, 3), (9, 2500), (3, 10, 6, 8), (2, 20011)], ids=str)
def test_correction(shape: tuple[int, ...], dtype: torch.dtype, reduction: int) -> None:
    """A right guess leaves the gradient alone, whatever it is; a wrong one makes it right."""
    logits = make_case(math.prod(shape) // shape[1], shape[1], dtype)[0].view(shape)
    target = make_case(logits[:, 0].numel(), shape[1], dtype)[1].view(logits[:, 0].shape)
    options = (None, reduction, *PLAIN[2:])
    loss, _, *saved = OPS.cross_entropy_forward(logits, target, *options, False)
    arguments = (upstream_of(loss, 0.75), None, logits, target, *saved, *options)
    grad, report = torch.full_like(logits, 7), empty_report()
    OPS.cross_entropy_correction(*arguments, grad, 0.75, report)
    assert torch.equal(grad, torch.full_like(logits, 7))
    assert read(report) == [-1, 0.75]
    for guess in (0.5, math.nan):
        OPS.cross_entropy_correction(*arguments, grad.fill_(7), guess, report.fill_(-1))
        assert torch.equal(grad, OPS.cross_entropy_backward(*arguments))
        assert read(report) == [0.75, -1]


def test_correction_of_another_layout_than_the_logits() -> None:
    """What is written elsewhere and copied is written in any case."""
    logits = make_case(30, 33, torch.float32)[0].view(3, 10, 3, 11)
    target = logits.double().softmax(1)
    loss, _, *saved = OPS.cross_entropy_forward(logits, target, *PLAIN, False)
    arguments = (upstream_of(loss, 1.0), None, logits, target, *saved, *PLAIN)
    expected = OPS.cross_entropy_backward(*arguments)
    grad = expected.clone()
    report = empty_report()
    for guess in (1.0, 0.5):
        OPS.cross_entropy_correction(*arguments, grad, guess, report)
        assert torch.equal(grad, expected)
    assert 1.0 in read(report)


def test_correction_refuses_what_it_cannot_use() -> None:
    logits, target, _ = make_case(6, 5, torch.float32)
    options = (None, 0, *PLAIN[2:])
    loss, _, *saved = OPS.cross_entropy_forward(logits, target, *options, False)
    grad, report = torch.zeros_like(logits), empty_report()

    def correct(grad_loss: Tensor, grad: Tensor, report: Tensor) -> None:
        arguments = (grad_loss, None, logits, target, *saved, *options, grad, 1.0, report)
        OPS.cross_entropy_correction(*arguments)

    with pytest.raises(RuntimeError, match=r"grad_loss must be one number.* strides \[1\]"):
        correct(torch.ones_like(loss), grad, report)
    with pytest.raises(RuntimeError, match=r"grad_input must be Float of shape \[6, 5\]"):
        correct(upstream_of(loss, 1.0), grad.double(), report)
    with pytest.raises(RuntimeError, match=r"report must be two Doubles.* got Float"):
        correct(upstream_of(loss, 1.0), grad, report.float())


@pytest.mark.skipif(DEVICE.type != "cpu", reason="opcheck makes its own copies of host memory")
def test_correction_opcheck() -> None:
    logits, target, weight = make_case(6, 5, torch.float64)
    options = (weight, *PLAIN[1:])
    loss, _, *saved = OPS.cross_entropy_forward(logits, target, *options, False)
    arguments = (upstream_of(loss, 1.0), None, logits, target, *saved, *options)
    checks = opcheck(
        OPS.cross_entropy_correction.default,
        (*arguments, torch.zeros_like(logits), 0.5, empty_report()),
    )
    assert set(checks.values()) == {"SUCCESS"}
