"""`CrossEntropyLoss` stands in for `nn.CrossEntropyLoss`."""

import copy
import pickle

import pytest
import torch
from torch import nn

import softreg_ext

OPTIONS = {"ignore_index": 3, "reduction": "sum", "label_smoothing": 0.1}


def pair(weight: torch.Tensor | None) -> tuple[nn.Module, nn.Module]:
    options = {"weight": weight, **OPTIONS}
    return softreg_ext.CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options)


@pytest.mark.parametrize("weight", [None, torch.rand(10) + 0.5], ids=["plain", "weighted"])
def test_same_loss_state_and_repr(weight: torch.Tensor | None) -> None:
    ours, theirs = pair(weight)
    logits, target = torch.randn(8, 10), torch.arange(8)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert repr(ours) == repr(theirs)


def test_repr_names_what_pytorchs_loss_lacks() -> None:
    assert repr(softreg_ext.CrossEntropyLoss(z_loss=1e-4)) == "CrossEntropyLoss(z_loss=0.0001)"
    both = softreg_ext.LinearCrossEntropyLoss(4, 5, reduction="sum", softcap=30.0, logit_scale=2)
    assert "reduction=sum" in repr(both) and "logit_scale=2, softcap=30.0\n" in repr(both)


def test_weight_follows_to() -> None:
    ours, _ = pair(torch.ones(10))
    assert ours.double().weight.dtype == torch.float64
    assert ours(torch.randn(4, 10).double(), torch.arange(4)).dtype == torch.float64


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_clones(clone) -> None:  # type: ignore[no-untyped-def]
    ours, _ = pair(torch.rand(10))
    logits, target = torch.randn(8, 10), torch.arange(8)
    assert torch.equal(clone(ours)(logits, target), ours(logits, target))
