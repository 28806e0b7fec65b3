"""Rows so few that threads share each of them."""

from typing import Any

import pytest
import torch
from cases import (
    DTYPES,
    check_against_torch,
    check_same_bits_for_any_thread_count,
    loss_and_grad,
    make_case,
)

import softreg_ext

SHARED = 65536  # classes from which on rows are shared
FEW = 31  # rows up to which
PROBABILITIES = "probabilities"


def options_of(name: str, weight: torch.Tensor) -> dict[str, Any]:
    return {
        "plain": {},
        "smoothing": {"label_smoothing": 0.1},
        "weighted smoothing": {"label_smoothing": 0.3, "weight": weight},
        "none": {"reduction": "none"},
        PROBABILITIES: {},
    }[name]


@pytest.mark.parametrize("name", ["plain", "smoothing", "weighted smoothing", "none"])
@pytest.mark.parametrize(("rows", "classes"), [(1, SHARED), (3, 100003)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_torch(dtype: torch.dtype, rows: int, classes: int, name: str) -> None:
    logits, target, weight = make_case(rows, classes, dtype)
    grad_output = torch.rand(rows).to(dtype) if name == "none" else None
    check_against_torch(logits, target, grad_output, **options_of(name, weight))


@pytest.mark.parametrize("name", ["plain", "weighted smoothing", PROBABILITIES])
@pytest.mark.parametrize("transform", [{}, {"logit_scale": 0.5, "softcap": 20.0, "z_loss": 1e-3}])
def test_as_in_more_rows(transform: dict[str, float], name: str) -> None:
    """But for the order in which a row's exponentials are added up."""
    logits, target, weight = make_case(FEW + 1, 70001, torch.float64)
    given = logits.flip(1).softmax(1) if name == PROBABILITIES else target
    options = options_of(name, weight) | transform | {"reduction": "none"}
    loss, grad = loss_and_grad(softreg_ext.cross_entropy, logits, given, torch.ones(32), **options)
    few = (logits[:FEW], given[:FEW], torch.ones(FEW))
    loss_of_few, grad_of_few = loss_and_grad(softreg_ext.cross_entropy, *few, **options)
    torch.testing.assert_close(loss_of_few, loss[:FEW], rtol=1e-13, atol=0)
    torch.testing.assert_close(grad_of_few, grad[:FEW], rtol=1e-11, atol=1e-18)


def test_whatever_the_number_of_threads() -> None:
    logits, target, _ = make_case(3, 100003, torch.float32)
    check_same_bits_for_any_thread_count(logits, target)


def test_total_weight_whatever_the_number_of_threads() -> None:
    """And whether a gradient is computed beside: it is what both divide by."""
    logits, target, weight = make_case(3, 2 * SHARED, torch.float32)
    target[:] = torch.arange(3)
    weight[:3] = torch.tensor([1.0, 2**-53, 2**-53])
    arguments = (logits, target, weight, 1, -100, 0.0, 0.0, 1.0, None, False)
    ops, found = torch.ops.softreg_ext, set()
    threads = torch.get_num_threads()
    for count in (1, 4):
        torch.set_num_threads(count)
        found.add(ops.cross_entropy_forward(*arguments)[3].item())
        found.add(ops.cross_entropy_forward_with_gradient(*arguments, 1.0)[3].item())
    torch.set_num_threads(threads)
    assert found == {1 + 2**-52}


def test_ignored_rows_are_not_read() -> None:
    logits, target, _ = make_case(3, SHARED, torch.float32)
    logits[1] = float("nan")
    target[1] = -100
    loss, grad = loss_and_grad(softreg_ext.cross_entropy, logits, target, None)
    kept = torch.tensor([0, 2])
    expected = loss_and_grad(softreg_ext.cross_entropy, logits[kept], target[kept], None)
    assert torch.equal(loss, expected[0])
    assert torch.equal(grad[kept], expected[1])
    assert not grad[1].any()


@pytest.mark.parametrize(
    ("place", "value"), [(5, float("nan")), (SHARED - 1, float("inf")), (SHARED - 1, float("nan"))]
)
def test_what_is_not_finite_in_one_share(place: int, value: float) -> None:
    logits, target, _ = make_case(2, SHARED, torch.float32)
    logits[1, place] = value
    loss, grad = loss_and_grad(
        softreg_ext.cross_entropy, logits, target, torch.ones(2), reduction="none"
    )
    assert loss[0].isfinite() and loss[1].isnan()
    assert grad[0].isfinite().all() and grad[1].isnan().all()


def test_a_share_without_a_chance() -> None:
    logits, target, _ = make_case(2, SHARED, torch.float32)
    target[:] = 7
    logits[:, SHARED // 2 :] = float("-inf")
    halves = loss_and_grad(softreg_ext.cross_entropy, logits[:, : SHARED // 2], target, None)
    loss, grad = loss_and_grad(softreg_ext.cross_entropy, logits, target, None)
    torch.testing.assert_close(loss, halves[0])
    torch.testing.assert_close(grad[:, : SHARED // 2], halves[1])
    assert not grad[:, SHARED // 2 :].any()


@pytest.mark.index_error
@pytest.mark.parametrize("label", [-1, SHARED])
def test_a_label_out_of_range(label: int) -> None:
    with pytest.raises(IndexError, match=f"target {label} at row 1 is out of bounds"):
        softreg_ext.cross_entropy(torch.zeros(2, SHARED), torch.tensor([3, label]))


def test_the_targets_gradient() -> None:
    logits = make_case(2, 70001, torch.float64)[0]
    target = logits.flip(1).softmax(1).requires_grad_()
    softreg_ext.cross_entropy(logits, target, reduction="sum").backward()
    torch.testing.assert_close(target.grad, -logits.log_softmax(1), rtol=1e-12, atol=0)
