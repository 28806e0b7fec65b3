"""The textbook's training loop, kept free of waits for the device."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Batches = Iterable[tuple[Tensor, Tensor]]
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean loss per sample, running over the epoch.
        train_acc: Share of training samples classified right, running over the epoch.
        test_acc: Share of test samples classified right after the epoch.
        train_seconds: Time spent training, evaluation left out.
    """

    epoch: int
    train_loss: float
    train_acc: float
    test_acc: float
    train_seconds: float


class RunningMetrics:
    """Loss and accuracy so far, summed on the device: only reading them waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.samples = 0
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, loss_sum: Tensor, logits: Tensor, target: Tensor) -> None:
        """Adds a batch: its summed loss, ``(B, C)`` logits, both detached, and ``(B,)`` labels."""
        self.samples += len(target)
        self._loss += loss_sum
        self._correct += (logits.argmax(1) == target).sum()

    @property
    def loss(self) -> float:
        """Mean loss per sample."""
        return float(self._loss) / self.samples

    @property
    def accuracy(self) -> float:
        """Share of samples classified right."""
        return int(self._correct) / self.samples


def train(
    net: nn.Module,
    train_iter: Batches,
    test_iter: Batches,
    loss: LossFunction,
    num_epochs: int,
    optimizer: Optimizer,
    *,
    history: list[EpochResult] | None = None,
    on_step: Callable[[RunningMetrics], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> list[EpochResult]:
    """The textbook's ``train_ch3``.

    Args:
        net: Maps a batch of inputs to ``(B, C)`` logits.
        train_iter: Batches of inputs and ``(B,)`` int64 labels, iterated once per epoch.
        test_iter: The same for testing.
        loss: Maps logits and labels to one loss per sample, or to their mean or sum; a sum says
            so by an attribute ``reduction == "sum"``, as torch's losses do.
        num_epochs: Epochs to train.
        optimizer: Any torch optimizer over the parameters of `net`.
        history: Results are appended to this list as epochs finish, so a caller who passes one
            keeps them through an interrupt. Epoch numbers continue from its length.
        on_step: Called after each step; reading the metrics waits for the device.
        on_epoch: Called with each finished epoch.

    Returns:
        The results of all epochs, `history` if given.

    Raises:
        ValueError: `num_epochs` is smaller than 1, or an iterator yields no samples.
    """
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {num_epochs}")
    history = [] if history is None else history
    for epoch in range(len(history) + 1, len(history) + 1 + num_epochs):
        start = time.perf_counter()
        train_loss, train_acc = train_epoch(net, train_iter, loss, optimizer, on_step=on_step)
        seconds = time.perf_counter() - start
        test_acc = evaluate_accuracy(net, test_iter)
        result = EpochResult(epoch, train_loss, train_acc, test_acc, seconds)
        history.append(result)
        if on_epoch is not None:
            on_epoch(result)
    return history


def train_epoch(
    net: nn.Module,
    train_iter: Batches,
    loss: LossFunction,
    optimizer: Optimizer,
    *,
    on_step: Callable[[RunningMetrics], None] | None = None,
) -> tuple[float, float]:
    """Trains for one epoch; the arguments are those of `train`.

    The gradient is that of ``loss(...).mean()``: of the mean loss, unless `loss` returns a sum.

    Returns:
        Mean loss per sample and accuracy, both running over the epoch.

    Raises:
        ValueError: `train_iter` yields no samples.
    """
    net.train()
    device = _device_of(net)
    metrics = RunningMetrics(device)
    for inputs, target in train_iter:
        inputs, target = inputs.to(device), target.to(device)
        logits = net(inputs)
        batch_loss = loss(logits, target)
        optimizer.zero_grad()
        batch_loss.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        # Detached, not under no_grad: at ten classes that block is 4 % of a step.
        batch_loss, logits = batch_loss.detach(), logits.detach()
        metrics.add(_loss_sum(batch_loss, loss, len(target)), logits, target)
        if on_step is not None:
            on_step(metrics)
    if metrics.samples == 0:
        raise ValueError("train_iter yielded no samples")
    return metrics.loss, metrics.accuracy


@torch.no_grad()
def evaluate_accuracy(net: nn.Module, data_iter: Batches) -> float:
    """Share of samples that `net` classifies right.

    Raises:
        ValueError: `data_iter` yields no samples.
    """
    net.eval()
    device = _device_of(net)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    samples = 0
    for inputs, target in data_iter:
        correct += (net(inputs.to(device)).argmax(1) == target.to(device)).sum()
        samples += len(target)
    if samples == 0:
        raise ValueError("data_iter yielded no samples")
    return int(correct) / samples


def _loss_sum(batch_loss: Tensor, loss: LossFunction, samples: int) -> Tensor:
    """Summed loss of a batch from a loss per sample, a sum or a mean."""
    if batch_loss.dim() > 0 or getattr(loss, "reduction", "mean") == "sum":
        return batch_loss.sum()
    return batch_loss * samples


def _device_of(net: nn.Module) -> torch.device:
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
