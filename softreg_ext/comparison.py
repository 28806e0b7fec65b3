"""Losses side by side: trained from the same start, on the same batches, turn by turn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from torch import nn
from torch.optim import Optimizer

from .data import Loader
from .training import Batches, EpochResult, LossFunction, RunningMetrics, train


@dataclass
class Trainee:
    """All that one training run needs.

    Attributes:
        net: Maps a batch of images to logits.
        train_iter: Training batches; not to be shared, since iterating moves their order on.
        loss: See `softreg_ext.training.train`.
        optimizer: Over the parameters of `net`.
        history: One result per finished epoch.
    """

    net: nn.Module
    train_iter: Loader
    loss: LossFunction
    optimizer: Optimizer
    history: list[EpochResult] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """What training in turns came to; each mapping is by the trainee's name.

    Attributes:
        histories: One result per epoch.
        step_seconds: Seconds per training step, the median over the epochs.
        max_loss_difference: Largest distance between two of the train-loss curves.
    """

    histories: dict[str, list[EpochResult]]
    step_seconds: dict[str, float]
    max_loss_difference: float

    @classmethod
    def of(cls, trainees: Mapping[str, Trainee]) -> "Comparison":
        """Compares the epochs that all trainees finished.

        Raises:
            ValueError: There is no such epoch.
        """
        epochs = list(zip(*(trainee.history for trainee in trainees.values()), strict=False))
        if not epochs:
            raise ValueError("no epoch was finished by all trainees")
        losses = ([result.train_loss for result in epoch] for epoch in epochs)
        return cls(
            histories={name: trainee.history[: len(epochs)] for name, trainee in trainees.items()},
            step_seconds={
                name: median(result.train_seconds for result in trainee.history[: len(epochs)])
                / len(trainee.train_iter)
                for name, trainee in trainees.items()
            },
            max_loss_difference=max(max(epoch) - min(epoch) for epoch in losses),
        )


def train_in_turns(
    trainees: Mapping[str, Trainee],
    test_iter: Batches,
    num_epochs: int,
    *,
    on_step: Callable[[str, RunningMetrics], None] | None = None,
    on_epoch: Callable[[str, EpochResult], None] | None = None,
) -> None:
    """Trains all trainees epoch by epoch, so that a busy moment of the machine hits each of them.

    The order turns round every epoch: nobody always goes first. After an interrupt the histories
    hold what was finished.

    Args:
        trainees: By name; their `history` grows.
        test_iter: Test batches.
        num_epochs: Epochs to train.
        on_step: Called with the trainee's name after each step.
        on_epoch: Called with the trainee's name and each finished epoch.
    """
    names = list(trainees)
    for _ in range(num_epochs):
        for name in names:
            trainee = trainees[name]
            train(
                trainee.net,
                trainee.train_iter,
                test_iter,
                trainee.loss,
                1,
                trainee.optimizer,
                history=trainee.history,
                on_step=partial(on_step, name) if on_step else None,
                on_epoch=partial(on_epoch, name) if on_epoch else None,
            )
        names.reverse()
