"""What must hold for any shape, memory layout, dtype, option and value."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from cases import DEVICE, DTYPES, check_against_torch, loss_and_grad, random_source
from hypothesis import assume, given, settings
from torch import Tensor

import softreg_ext

repeatable = settings(derandomize=True, deadline=None, max_examples=400)


def odd_base(x: Tensor) -> Tensor:
    """One element past the start of its memory."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def padded_rows(x: Tensor) -> Tensor:
    return F.pad(x, (0, 3))[..., : x.shape[-1]]


def every_other(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=0)[::2]


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def classes_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 1 else x


def one_row_for_all(x: Tensor) -> Tensor:
    return x[:1].expand_as(x) if x.dim() > 1 and x.shape[0] else x


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    torch.Tensor.contiguous,
    odd_base,
    padded_rows,
    every_other,
    transposed,
    classes_last,
    one_row_for_all,
]


@dataclass
class Case:
    logits: Tensor
    target: Tensor
    options: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES) -> Case:
    """Labels of every dtype, some ignored, on logits of every shape and layout."""
    classes = draw(st.sampled_from([1, 2, 7, 8, 9, 16, 31, 32, 33, 47, 64, 65, 100]))
    rows = draw(
        st.sampled_from([(), (0,), (1,), (3,), (17,), (2, 5), (1, 16), (2, 3, 4), (3, 2, 9)])
    )
    shape = (rows[0], classes, *rows[1:]) if rows else (classes,)
    generator = random_source(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(dtypes))
    # a sum of losses beyond float16's largest number has nothing to be compared with
    size = draw(st.sampled_from([1e-3, 1.0, 10.0, 10.0 if dtype == torch.float16 else 1e4]))
    logits = (torch.randn(shape, generator=generator) * size).to(dtype)
    logits = draw(st.sampled_from(LAYOUTS))(logits)
    target = torch.randint(classes, rows, generator=generator)
    ignore_index = draw(st.sampled_from([-100, 0, classes - 1]))
    target = torch.where(torch.rand(rows, generator=generator) < 0.2, ignore_index, target)
    labels = [torch.int64, torch.int32, torch.int16, *([torch.uint8] if ignore_index >= 0 else [])]
    weight = (torch.rand(classes, generator=generator) + 0.5).to(dtype)
    options = {
        "ignore_index": ignore_index,
        "reduction": draw(st.sampled_from(["none", "mean", "sum"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "weight": weight if draw(st.booleans()) else None,
    }
    return Case(logits, target.to(draw(st.sampled_from(labels))), options)


def is_mean_of_nothing(case: Case) -> bool:
    counted = case.target != case.options["ignore_index"]
    return case.options["reduction"] == "mean" and not counted.any()


@repeatable
@given(cases())
def test_as_accurate_as_torch(case: Case) -> None:
    if is_mean_of_nothing(case):
        loss, grad = loss_and_grad(
            softreg_ext.cross_entropy, case.logits, case.target, None, **case.options
        )
        assert loss.isnan() and not grad.any()
        return
    has_row_losses = case.options["reduction"] == "none"
    upstream = torch.ones(case.target.shape if has_row_losses else ()).to(case.logits.dtype)
    check_against_torch(case.logits, case.target, upstream, **case.options)


@repeatable
@given(cases())
def test_same_bits_twice_and_nothing_written(case: Case) -> None:
    before = case.logits.clone(), case.target.clone()
    first, second = (
        loss_and_grad(softreg_ext.cross_entropy, case.logits, case.target, None, **case.options)
        for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    assert torch.equal(case.logits, before[0]) and torch.equal(case.target, before[1])


@repeatable
@given(cases(dtypes=[torch.float64]), st.sampled_from(LAYOUTS))
def test_layouts_agree(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    logits = case.logits if layout is one_row_for_all else layout(case.logits)
    results = [
        loss_and_grad(softreg_ext.cross_entropy, x, case.target, None, **case.options)
        for x in (case.logits.contiguous(), logits)
    ]
    torch.testing.assert_close(*results, equal_nan=True, rtol=1e-12, atol=1e-12)


SPECIAL = [math.nan, math.inf, -math.inf, 2.0**24, -(2.0**24), 0.0, 1e-40]


@repeatable
@given(cases(dtypes=[torch.float32, torch.float64]), st.data())
def test_special_values(case: Case, data: st.DataObject) -> None:
    """NaN and infinities come out where PyTorch's do, but for ignored rows, which are not read."""
    logits = case.logits.contiguous().clone()
    class_dim = 1 if logits.dim() > 1 else 0
    rows = logits.movedim(class_dim, -1).reshape(-1, logits.shape[class_dim])
    ignored = (case.target == case.options["ignore_index"]).reshape(-1)
    for row in range(min(3, len(rows))):
        value = data.draw(st.sampled_from(SPECIAL))
        if data.draw(st.booleans()):
            rows[row] = value
        else:
            rows[row, data.draw(st.integers(0, rows.shape[1] - 1))] = value
    # On a GPU torch's mean over a single ignored row without a batch is 0; on the CPU it is NaN.
    assume(DEVICE.type == "cpu" or logits.dim() > 1 or not ignored.all())
    rows[ignored] = 0
    logits = rows.reshape(logits.movedim(class_dim, -1).shape).movedim(-1, class_dim)
    ours = loss_and_grad(softreg_ext.cross_entropy, logits, case.target, None, **case.options)
    theirs = loss_and_grad(F.cross_entropy, logits, case.target.long(), None, **case.options)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
