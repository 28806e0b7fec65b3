"""The textbook's softmax regression with our loss, and why it asks for a fused one."""

import math

import pytest
import torch
from torch import Tensor, nn

import softreg_ext


def naive_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Softmax, then its log, then the target's entry: each step as the formula has it."""
    exponentials = logits.exp()
    probabilities = exponentials / exponentials.sum(1, keepdim=True)
    return -probabilities[torch.arange(len(target)), target].log()


@pytest.mark.parametrize(
    ("logits", "target", "naive", "exact"),
    [
        ([100.0, 0.0], 0, math.nan, 0.0),  # exp(100) is inf: overflow
        ([100.0, 0.0], 1, math.inf, 100.0),  # 1 / inf is 0: log(0)
        ([0.0, -200.0], 1, math.inf, 200.0),  # exp(-200) is 0: underflow
        ([-200.0, -200.0], 0, math.nan, math.log(2.0)),  # 0 / 0
    ],
    ids=["overflow", "log of zero", "underflow", "zero by zero"],
)
def test_large_logits(logits: list[float], target: int, naive: float, exact: float) -> None:
    x, t = torch.tensor([logits], requires_grad=True), torch.tensor([target])
    broken = naive_cross_entropy(x, t)
    torch.testing.assert_close(broken, torch.tensor([naive]), equal_nan=True)
    assert not torch.autograd.grad(broken.sum(), x)[0].isfinite().all()

    loss = softreg_ext.cross_entropy(x, t, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([exact]))
    expected = torch.tensor([logits], dtype=torch.float64).softmax(1)
    expected[0, target] -= 1
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), x)[0], expected.float())


def descend(loss_function: object, steps: int = 20) -> tuple[float, Tensor]:
    """Plain SGD on inputs that were never normalised: the logits soon pass 89."""
    torch.manual_seed(0)
    net = nn.Linear(784, 10)
    images, labels = 255 * torch.rand(64, 784), torch.randint(10, (64,))
    for _ in range(steps):
        loss = loss_function(net(images), labels).mean()  # type: ignore[operator]
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
    return loss.item(), net.weight.detach()


def test_naive_training_turns_to_nan_and_ours_does_not() -> None:
    naive_loss, naive_weight = descend(naive_cross_entropy)
    assert math.isnan(naive_loss)
    assert naive_weight.isnan().any()
    loss, weight = descend(softreg_ext.CrossEntropyLoss(reduction="none"))
    assert math.isfinite(loss)
    assert weight.isfinite().all()


def test_the_textbooks_lines_run_unchanged() -> None:
    """Section 3.7 (concise softmax regression), with no change but the loss."""
    torch.manual_seed(0)
    train_iter, test_iter = softreg_ext.data.load_fashion_mnist(256, data="synthetic")

    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def init_weights(m: nn.Module) -> None:
        if type(m) is nn.Linear:
            nn.init.normal_(m.weight, std=0.01)

    net.apply(init_weights)
    loss = softreg_ext.CrossEntropyLoss(reduction="none")
    trainer = torch.optim.SGD(net.parameters(), lr=0.1)
    history = softreg_ext.training.train(net, train_iter, test_iter, loss, 3, trainer)
    assert history[-1].train_loss < 0.7 * history[0].train_loss
    assert history[-1].test_acc > 0.7
