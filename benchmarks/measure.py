"""One cell: every peer's result checked, then its time and its memory."""

import ctypes
import gc
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from cells import Cell, Inputs, make_inputs
from peers import Loss, peers_for, torch_loss, yardsticks
from torch import Tensor
from torch.utils.benchmark import Timer

import softreg_ext

MODES = ("forward", "forward, recorded", "forward + backward")
BLOCK_SECONDS = 0.01  # a timing is of as many calls as fill this
LEAST_ROUNDS, MOST_ROUNDS = 5, 51
EXACT_LOGITS = 1 << 26  # at a time: half a gigabyte in float64
MEMORY_LOGITS = 1 << 20  # below, other things move the process's size as much
LIBC = ctypes.CDLL(None)


def call_of(loss: Loss, inputs: Inputs, mode: str) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """The loss, with the gradient of its sum if the mode asks for one."""
    leaf = inputs.logits.detach().requires_grad_(mode != "forward")

    def call() -> tuple[Tensor, Tensor | None]:
        result = loss(leaf, inputs.target, **inputs.options)
        if mode == MODES[-1]:
            (result if result.dim() == 0 else result.sum()).backward()
        grad, leaf.grad = leaf.grad, None  # not kept: others need the memory
        return result, grad

    return call


def exact(inputs: Inputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Losses and gradient in float64, some samples at a time.

    The losses are those of the samples, or their part of the reduced loss.
    """

    def widen(x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    options = {name: widen(x) for name, x in inputs.options.items()}
    per_row = options.pop("reduction", "mean") == "none"
    total = 1 if per_row else mean_divides_by(inputs)
    count = max(1, EXACT_LOGITS // inputs.logits[0].numel())
    for logits, target in zip(inputs.logits.split(count), inputs.target.split(count), strict=True):
        leaf = logits.double().requires_grad_()
        reduction = "none" if per_row else "sum"
        loss = torch_loss(leaf, widen(target), reduction=reduction, **options) / total
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        yield loss.detach(), grad


def mean_divides_by(inputs: Inputs) -> float:
    if not inputs.has_labels:
        return inputs.logits.numel() / inputs.logits.shape[1]
    counted = inputs.target[inputs.target != -100]
    weight = inputs.options.get("weight")
    return counted.numel() if weight is None else float(weight.double()[counted].sum())


def errors(
    call: Callable[[], tuple[Tensor, Tensor | None]], reference: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Largest errors of loss and gradient, as parts of the largest exact value."""
    loss, grad = call()
    assert grad is not None
    losses, wrong, sizes = [], [], []
    begin = 0
    for exact_loss, exact_grad in reference:
        ours = grad[begin : begin + len(exact_grad)].double()
        begin += len(exact_grad)
        losses.append(exact_loss)
        wrong.append((ours - exact_grad).abs().max())
        sizes.append(exact_grad.abs().max())
    right = torch.cat(losses) if loss.dim() else torch.stack(losses).sum()
    loss_error = (loss.detach().double() - right).abs().max() / right.abs().max()
    return float(loss_error), float(torch.stack(wrong).max() / torch.stack(sizes).max())


def allowed_error(inputs: Inputs) -> float:
    return 64 * torch.finfo(inputs.logits.dtype).eps


def assert_right(size: object, name: str, found: Iterable[float], allowed: float) -> None:
    """Not even a NaN is allowed."""
    assert all(error <= allowed for error in found), f"{size}: {name} is wrong by {found}"


def peak_bytes(call: Callable[[], Any]) -> int:
    """How far the process grows during one call (Linux)."""

    def kilobytes(field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found
        return int(found[1])

    # What earlier calls left would hide what this one takes.
    softreg_ext.release_memory()
    gc.collect()
    if hasattr(LIBC, "malloc_trim"):  # glibc has it
        LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = kilobytes("VmRSS")
    call()
    return (kilobytes("VmHWM") - before) * 1024


def quantile(times: list[float], part: float) -> float:
    return sorted(times)[round(part * (len(times) - 1))]


def timings(
    calls: dict[str, Callable[[], Any]], threads: int, seconds: float, untimed_calls: int = 0
) -> dict[str, list[float]]:
    """Seconds a call: the calls take turns, in an order drawn for each round.

    `untimed_calls`: with which a turn begins, where what the last peer left in memory that they
    share is not to be timed.
    """
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads)
        for name, call in calls.items()
    }
    once = {name: timer.timeit(1).mean for name, timer in timers.items()}
    numbers = {name: max(1, math.ceil(BLOCK_SECONDS / once[name])) for name in timers}
    a_round = sum((untimed_calls + numbers[name]) * once[name] for name in timers)

    def turn(name: str) -> float:
        for _ in range(untimed_calls):
            calls[name]()
        return float(timers[name].timeit(numbers[name]).mean)

    return in_turns(list(timers), turn, seconds / a_round)


def in_turns(
    order: list[str], seconds_of: Callable[[str], float], rounds: float
) -> dict[str, list[float]]:
    """Timings by name: all take turns, in an order drawn for each round."""
    times: dict[str, list[float]] = {name: [] for name in order}
    draw = random.Random(0)
    for _ in range(min(MOST_ROUNDS, max(LEAST_ROUNDS, int(rounds)))):
        draw.shuffle(order)
        for name in order:
            times[name].append(seconds_of(name))
    return times


def summary(times: list[float]) -> dict[str, float]:
    """The columns of a timing."""
    return {
        "median_s": quantile(times, 0.5),
        "lower_quartile_s": quantile(times, 0.25),
        "upper_quartile_s": quantile(times, 0.75),
        "rounds": len(times),
    }


def measure(cell: Cell, seconds: float) -> Iterator[dict[str, Any]]:
    """One row for each mode and peer, and for the yardsticks.

    Raises:
        AssertionError: A peer's loss or gradient is wrong: it is not timed then.
    """
    torch.set_num_threads(cell.threads)
    inputs = make_inputs(cell)
    peers = peers_for(cell)
    reference = list(exact(inputs))
    allowed = allowed_error(inputs)
    found = {}
    for name, loss in peers.items():
        found[name] = errors(call_of(loss, inputs, MODES[-1]), reference)
        assert_right(cell, name, found[name], allowed)
    del reference

    about = cell.columns
    for mode in MODES:
        calls: dict[str, Callable[[], Any]] = {
            name: call_of(loss, inputs, mode) for name, loss in peers.items()
        }
        peaks = {}
        if cell.logits >= MEMORY_LOGITS and mode == MODES[-1]:
            peaks = {name: peak_bytes(call) for name, call in calls.items()}
        if mode == MODES[0]:
            calls.update(yardsticks(inputs.logits))
        for name, times in timings(calls, cell.threads, seconds).items():
            loss_error, grad_error = found.get(name, (None, None))
            yield {
                **about,
                "mode": mode,
                "peer": name,
                **summary(times),
                "peak_bytes": peaks.get(name),
                "loss_error": loss_error,
                "grad_error": grad_error,
            }
