"""The training loop against the textbook's, written out."""

import math

import pytest
import torch
from torch import Tensor, nn

from softreg_ext import training
from softreg_ext.data import Loader, draw_garments, make_loader
from softreg_ext.model import SoftmaxRegression


def make_iters(batch_size: int = 32) -> tuple[Loader, Loader]:
    return (
        make_loader(*draw_garments(200, 0), batch_size, shuffle=True, seed=0),
        make_loader(*draw_garments(100, 1), batch_size),
    )


def make_net() -> SoftmaxRegression:
    torch.manual_seed(0)
    return SoftmaxRegression()


def textbook(net: nn.Module, num_epochs: int) -> list[tuple[float, float, float]]:
    """Dive into Deep Learning, 3.6 and 3.7: sums as Python floats, step by step."""
    train_iter, test_iter = make_iters()
    loss = nn.CrossEntropyLoss(reduction="none")
    trainer = torch.optim.SGD(net.parameters(), lr=0.1)
    results = []
    for _ in range(num_epochs):
        loss_sum, correct, count = 0.0, 0, 0
        for X, y in train_iter:
            y_hat = net(X)
            l = loss(y_hat, y)  # noqa: E741
            trainer.zero_grad()
            l.mean().backward()
            trainer.step()
            loss_sum += l.sum().item()
            correct += int((y_hat.argmax(dim=1) == y).sum())
            count += y.numel()
        with torch.no_grad():
            right = sum(int((net(X).argmax(dim=1) == y).sum()) for X, y in test_iter)
        results.append((loss_sum / count, correct / count, right / 100))
    return results


def test_train_is_the_textbook_loop_to_the_bit() -> None:
    expected_net, net = make_net(), make_net()
    expected = textbook(expected_net, 3)
    history = training.train(
        net,
        *make_iters(),
        nn.CrossEntropyLoss(reduction="none"),
        3,
        torch.optim.SGD(net.parameters(), lr=0.1),
    )
    assert [(r.train_loss, r.train_acc, r.test_acc) for r in history] == expected
    assert [r.epoch for r in history] == [1, 2, 3]
    assert all(r.train_seconds > 0 for r in history)
    for mine, yours in zip(net.parameters(), expected_net.parameters(), strict=True):
        assert torch.equal(mine, yours)


def test_both_loaders_train_alike() -> None:
    histories = []
    for kind in ("tensor", "dataloader"):
        net = make_net()
        iters = (
            make_loader(*draw_garments(100, 0), 32, loader=kind, shuffle=True, seed=0),
            make_loader(*draw_garments(50, 1), 32, loader=kind),
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        loss = nn.CrossEntropyLoss(reduction="none")
        history = training.train(net, *iters, loss, 2, optimizer)
        histories.append([(r.train_loss, r.train_acc, r.test_acc) for r in history])
    assert histories[0] == histories[1]


def test_it_learns() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    history = training.train(
        net, *make_iters(), nn.CrossEntropyLoss(reduction="none"), 15, optimizer
    )
    assert history[-1].train_loss < 0.6 * history[0].train_loss
    assert history[-1].test_acc > 0.7


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduced_losses_report_the_mean_per_sample(reduction: str) -> None:
    # Learning nothing, all reductions must report the same; 200 = 6 * 32 + 8 weighs the batches.
    results = []
    for name in ("none", reduction):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        loss = nn.CrossEntropyLoss(reduction=name)
        results.append(training.train_epoch(net, make_iters()[0], loss, optimizer))
    assert results[1] == pytest.approx(results[0], rel=1e-6)


def test_mean_reduction_takes_the_same_steps() -> None:
    nets = [make_net(), make_net()]
    for net, reduction in zip(nets, ("none", "mean"), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        loss = nn.CrossEntropyLoss(reduction=reduction)
        training.train_epoch(net, make_iters()[0], loss, optimizer)
    for mine, yours in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, yours)


def test_plain_function_counts_as_mean() -> None:
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters())
    train_loss, _ = training.train_epoch(
        net, make_iters()[0], nn.functional.cross_entropy, optimizer
    )
    assert train_loss < math.log(10)


def test_evaluate_accuracy() -> None:
    class Constant(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.eye(10)[[4] * len(inputs)]

    labels = torch.tensor([4, 4, 1, 4, 0])
    batches = make_loader(torch.zeros(5, 28, 28, dtype=torch.uint8), labels, 2)
    assert training.evaluate_accuracy(Constant(), batches) == 3 / 5


def test_interrupt_keeps_finished_epochs() -> None:
    net = make_net()
    history: list[training.EpochResult] = []
    steps = 0

    def interrupt(metrics: training.RunningMetrics) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:
            raise KeyboardInterrupt

    def run(**hooks: object) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        loss = nn.CrossEntropyLoss(reduction="none")
        training.train(net, *make_iters(), loss, 2, optimizer, history=history, **hooks)

    with pytest.raises(KeyboardInterrupt):
        run(on_step=interrupt)
    assert [result.epoch for result in history] == [1]
    run()
    assert [result.epoch for result in history] == [1, 2, 3]


def test_hooks_see_every_step_and_epoch() -> None:
    net = make_net()
    seen: list[tuple[int, float, float]] = []
    epochs: list[training.EpochResult] = []
    history = training.train(
        net,
        *make_iters(),
        nn.CrossEntropyLoss(reduction="none"),
        2,
        torch.optim.SGD(net.parameters(), lr=0.1),
        on_step=lambda m: seen.append((m.samples, m.loss, m.accuracy)),
        on_epoch=epochs.append,
    )
    assert [samples for samples, _, _ in seen] == [32, 64, 96, 128, 160, 192, 200] * 2
    assert seen[6][1:] == (history[0].train_loss, history[0].train_acc)
    assert epochs == history


def test_nothing_to_train_on_is_an_error() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="train_iter yielded no samples"):
        training.train_epoch(net, [], nn.CrossEntropyLoss(), optimizer)
    with pytest.raises(ValueError, match="data_iter yielded no samples"):
        training.evaluate_accuracy(net, [])
    with pytest.raises(ValueError, match="num_epochs must be at least 1, got 0"):
        training.train(net, [], [], nn.CrossEntropyLoss(), 0, optimizer)
