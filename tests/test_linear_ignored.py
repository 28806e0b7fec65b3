"""Rows whose labels are ignored: a linear layer and its loss in one leave them out on a CPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import DEVICE, DTYPES
from linear_cases import CLASSES, OPTIONS, ROWS, apart, check, fused, make_inputs, results
from measure import peak_bytes
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import softreg_ext
from softreg_ext._extension import _C

OPS = torch.ops.softreg_ext
pytestmark = pytest.mark.usefixtures("small_chunks")
on_a_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU multiplies all rows")
COUNTED = [1, 2, 5, 8, 9, 17, 30, 31]


def make_mostly_ignored(
    dtype: torch.dtype = torch.float64, dims: tuple[int, ...] = (), ignore_index: int = -100
) -> tuple[list[Tensor], Tensor]:
    """Some rows at the ends and in between count, in chunks of several and in the last one."""
    leaves, _ = make_inputs(dtype, dims)
    target = torch.full((ROWS, *dims), ignore_index)
    labels = torch.arange(CLASSES - 1).repeat(10)[: target[COUNTED].numel()]
    labels = labels + (labels >= ignore_index) if ignore_index >= 0 else labels
    target[COUNTED] = labels.reshape(target[COUNTED].shape)
    return leaves, target


def multiplied_rows(leaves: list[Tensor], target: Tensor, **options: Any) -> set[int]:
    """Of the logits, as the op hands them to the loss."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        fused(leaves, target, **options)
    name = "softreg_ext::cross_entropy_forward"
    shapes = [event.input_shapes[0] for event in profiled.events() if event.name == name]
    return {sum(shape[0] for shape in shapes)}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_the_two_ops_apart(dtype: torch.dtype, options: dict[str, Any]) -> None:
    leaves, target = make_mostly_ignored(dtype, ignore_index=options.get("ignore_index", -100))
    check(leaves, target, **options)
    check(leaves, target, torch.linspace(0.5, 2, CLASSES).to(dtype), **options)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_k_dimensional(options: dict[str, Any]) -> None:
    """A row counts where one of its labels does."""
    leaves, target = make_mostly_ignored(
        torch.float32, dims=(2, 3), ignore_index=options.get("ignore_index", -100)
    )
    target[2, :, 1] = target[5, 1] = target[0, 0, 0]
    check(leaves, target, **options)


@on_a_cpu
def test_what_is_multiplied() -> None:
    leaves, target = make_mostly_ignored()
    assert multiplied_rows(leaves, target) == {len(COUNTED)}
    assert multiplied_rows(leaves, target, return_lse=True) == {ROWS}
    assert multiplied_rows(leaves, torch.full_like(target, -100)) == {0}
    # one row less is worth less than copies of the others
    target = torch.arange(ROWS)
    target[3] = -100
    assert multiplied_rows(leaves, target) == {ROWS}


@on_a_cpu
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_rows_that_are_left_out_are_not_read(reduction: str) -> None:
    leaves, target = make_mostly_ignored()
    expected = results(fused, leaves, target, reduction=reduction)
    input = torch.full_like(leaves[0], torch.nan)
    input[COUNTED] = leaves[0].detach()[COUNTED]
    found = results(fused, [input.requires_grad_(), *leaves[1:]], target, reduction=reduction)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    ignored = target == -100
    assert not found[1][ignored].any()
    if reduction == "none":
        assert not found[0][ignored].any()


@on_a_cpu
def test_memory() -> None:
    """What is copied of the input, and of its gradient, counts as the logits do: else 430 MB."""
    _C.set_chunk_bytes(0)
    leaves = [torch.randn(n, 4096, requires_grad=True) for n in (20000, 200)]
    target = torch.arange(20000) % 200
    target[::3] = -100

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(fused(leaves, target), leaves)

    step()
    assert (peak_bytes(step) >> 20) - (leaves[0].nbytes >> 20) <= 128


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_with_the_loss_have_the_bits_of_later_ones(
    reduction: str, dtype: torch.dtype
) -> None:
    leaves, target = make_mostly_ignored(dtype)
    gradients = []
    for _ in range(4):
        loss = fused(leaves, target, reduction=reduction)
        gradients += [torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2)]
    for later in gradients[1:]:
        assert all(torch.equal(x, y) for x, y in zip(later, gradients[0], strict=True))


def test_lse_is_of_all_rows() -> None:
    leaves, target = make_mostly_ignored()
    both = []
    for function in (fused, apart):
        loss, lse = function(leaves, target, return_lse=True)
        of_loss = torch.autograd.grad(loss, leaves, retain_graph=True)
        both.append([loss, lse, *of_loss, *torch.autograd.grad(loss + lse.sum(), leaves)])
    torch.testing.assert_close(*both)


def test_derivatives_of_gradients() -> None:
    leaves, target = make_mostly_ignored()
    upstream = [torch.full_like(leaf, 0.5) for leaf in leaves]
    both = []
    for function in (fused, apart):
        first = torch.autograd.grad(function(leaves, target), leaves, create_graph=True)
        both.append(torch.autograd.grad(first, leaves, upstream))
    torch.testing.assert_close(*both)


@pytest.fixture
def nan_in_fresh_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_nothing_is_left_as_it_was() -> None:
    leaves, target = make_mostly_ignored()
    assert torch.empty(3).isnan().all()
    options = (None, 0, -100, 0.0, 0.0, 1.0, None, False)
    found = OPS.linear_cross_entropy_forward(*leaves, target, *options, False)
    logits = torch.nn.functional.linear(*leaves)
    torch.testing.assert_close(found, OPS.cross_entropy_forward(logits, target, *options))
    for labels in (target, torch.full_like(target, -100)):
        for reduction in ("none", "sum", "mean"):
            both = [results(f, leaves, labels, reduction=reduction) for f in (fused, apart)]
            torch.testing.assert_close(*both, equal_nan=True)


@on_a_cpu
def test_a_bad_label_is_named_by_its_row_of_all() -> None:
    leaves, target = make_mostly_ignored()
    target[30] = CLASSES
    with pytest.raises(IndexError, match=f"target {CLASSES} at row 30"):
        softreg_ext.linear_cross_entropy(*leaves[:2], target)
