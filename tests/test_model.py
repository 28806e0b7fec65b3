"""The textbook's model."""

import pytest
import torch
from torch import nn

from softreg_ext.model import SoftmaxRegression


def test_it_is_flatten_and_linear() -> None:
    net = SoftmaxRegression()
    assert [type(layer) for layer in net] == [nn.Flatten, nn.Linear]
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == {
        "1.weight": (10, 784),
        "1.bias": (10,),
    }
    images = torch.rand(4, 1, 28, 28)
    weight, bias = net.parameters()
    torch.testing.assert_close(net(images), images.flatten(1) @ weight.T + bias)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    weight, bias = SoftmaxRegression(784, 100).parameters()
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert not bias.any()


@pytest.mark.parametrize("name", ["in_features", "num_classes"])
def test_sizes_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SoftmaxRegression(**{name: 0})
