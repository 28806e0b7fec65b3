"""Training losses in turns."""

import pytest
import torch
from torch import nn

from softreg_ext.comparison import Comparison, Trainee, train_in_turns
from softreg_ext.data import draw_garments, make_loader
from softreg_ext.model import SoftmaxRegression
from softreg_ext.training import EpochResult

TEST_ITER = make_loader(*draw_garments(50, 1), 32)


def make_trainee(lr: float = 0.1) -> Trainee:
    torch.manual_seed(0)
    net = SoftmaxRegression()
    return Trainee(
        net=net,
        train_iter=make_loader(*draw_garments(100, 0), 32, shuffle=True, seed=0),
        loss=nn.CrossEntropyLoss(reduction="none"),
        optimizer=torch.optim.SGD(net.parameters(), lr=lr),
    )


def test_equal_losses_give_equal_curves() -> None:
    trainees = {"one": make_trainee(), "other": make_trainee()}
    train_in_turns(trainees, TEST_ITER, 3)
    comparison = Comparison.of(trainees)
    assert comparison.max_loss_difference == 0
    assert [len(history) for history in comparison.histories.values()] == [3, 3]
    for name, trainee in trainees.items():
        median_epoch = sorted(result.train_seconds for result in trainee.history)[1]
        assert comparison.step_seconds[name] == pytest.approx(median_epoch / 4)


def test_difference_is_the_largest_over_the_epochs() -> None:
    trainees = {"one": make_trainee(), "other": make_trainee()}
    for trainee, losses in zip(trainees.values(), ([3.0, 2.0, 9.0], [3.5, 1.0]), strict=True):
        trainee.history += [EpochResult(1, loss, 0, 0, 1) for loss in losses]
    comparison = Comparison.of(trainees)
    assert comparison.max_loss_difference == 1.0
    assert [len(history) for history in comparison.histories.values()] == [2, 2]


def test_times_are_of_epochs_that_all_finished() -> None:
    trainees = {"one": make_trainee(), "other": make_trainee()}
    for seconds, *names in ((1.0, *trainees), (100.0, "one"), (100.0, "one")):
        for name in names:
            trainees[name].history.append(EpochResult(1, 0.5, 0, 0, seconds))
    assert len(set(Comparison.of(trainees).step_seconds.values())) == 1


def test_order_turns_round() -> None:
    trainees = {"one": make_trainee(), "other": make_trainee(lr=0.01)}
    order: list[tuple[str, int]] = []
    steps: list[str] = []
    train_in_turns(
        trainees,
        TEST_ITER,
        3,
        on_step=lambda name, metrics: steps.append(name),
        on_epoch=lambda name, result: order.append((name, result.epoch)),
    )
    assert order == [
        ("one", 1), ("other", 1), ("other", 2), ("one", 2), ("one", 3), ("other", 3)
    ]  # fmt: skip
    assert steps == [name for name, _ in order for _ in range(4)]
    assert Comparison.of(trainees).max_loss_difference > 0


def test_nothing_finished_is_an_error() -> None:
    with pytest.raises(ValueError, match="no epoch"):
        Comparison.of({"one": make_trainee(), "other": make_trainee()})
