"""The rule that the accuracy tests go by, and what must not pass it."""

import numpy as np
import pytest
import torch
from cases import check_against_torch, make_case
from oracle import Draw, assert_as_accurate, largest_error
from torch import Tensor

import softreg_ext

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("found", [NAN, INF, -INF])
@pytest.mark.parametrize("exact", [1.0, NAN, INF, -INF])
def test_what_is_no_number(found: float, exact: float) -> None:
    is_same = found == exact or (np.isnan(found) and np.isnan(exact))
    error = largest_error(np.array([0.0, found]), np.array([0.0, exact]))
    assert error == (0 if is_same else INF)


@pytest.mark.parametrize("wrong", [NAN, INF, 1 + 1e-6])
def test_a_wrong_result(wrong: float) -> None:
    right = torch.ones(3)
    assert_as_accurate(Draw(right, right, np.ones(3)))
    with pytest.raises(AssertionError, match="roundings, PyTorch"):
        assert_as_accurate(Draw(torch.tensor([1.0, wrong, 1.0]), right, np.ones(3)))


def test_a_wrong_result_of_pytorch_excuses_none() -> None:
    wrong = torch.tensor([NAN])
    with pytest.raises(AssertionError, match="roundings, PyTorch"):
        assert_as_accurate(Draw(wrong, wrong, np.ones(1)))


@pytest.mark.parametrize("change", [lambda x: x * NAN, lambda x: x + 1e-7, lambda x: x * 1.00001])
def test_a_wrong_gradient(change, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    logits, target, _ = make_case(2048, 10, torch.float32)
    check_against_torch(logits, target)
    right = softreg_ext.cross_entropy

    def wrong(leaf: Tensor, *arguments: Tensor) -> Tensor:
        leaf.register_hook(change)
        return right(leaf, *arguments)

    monkeypatch.setattr(softreg_ext, "cross_entropy", wrong)
    with pytest.raises(AssertionError, match="roundings"):
        check_against_torch(logits, target)
