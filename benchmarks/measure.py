"""One cell: every peer's result checked, then its time and its memory."""

import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import Cell, Inputs, make_inputs
from peers import Loss, peers_for, yardsticks
from torch import Tensor
from torch.utils.benchmark import Timer

MODES = ("forward", "forward, recorded", "forward + backward")
BLOCK_SECONDS = 0.01  # a timing is of as many calls as fill this
LEAST_ROUNDS, MOST_ROUNDS = 5, 51
MEMORY_LOGITS = 1 << 20  # below, what malloc keeps hides what a call takes


def call_of(loss: Loss, inputs: Inputs, mode: str) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """The loss, with the gradient of its sum if the mode asks for one."""
    leaf = inputs.logits.detach().requires_grad_(mode != "forward")

    def call() -> tuple[Tensor, Tensor | None]:
        leaf.grad = None
        result = loss(leaf, inputs.target, **inputs.options)
        if mode == MODES[-1]:
            (result if result.dim() == 0 else result.sum()).backward()
        return result, leaf.grad

    return call


def exact(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64."""
    widen = {n: x.double() if isinstance(x, Tensor) else x for n, x in inputs.options.items()}
    target = inputs.target.double() if inputs.target.is_floating_point() else inputs.target
    leaf = inputs.logits.double().requires_grad_()
    loss = F.cross_entropy(leaf, target, **widen)
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def errors(
    call: Callable[[], tuple[Tensor, Tensor | None]], reference: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Largest errors of loss and gradient, as parts of the largest exact value."""
    loss, grad = call()
    assert grad is not None
    return tuple(  # type: ignore[return-value]
        float((ours.detach().double() - right).abs().max() / right.abs().max())
        for ours, right in zip((loss, grad), reference, strict=True)
    )


def peak_bytes(call: Callable[[], Any]) -> int:
    """How far the process grows during one call (Linux)."""

    def kilobytes(field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found
        return int(found[1])

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = kilobytes("VmRSS")
    call()
    return (kilobytes("VmHWM") - before) * 1024


def quantile(sorted_times: list[float], part: float) -> float:
    return sorted_times[round(part * (len(sorted_times) - 1))]


def timings(
    calls: dict[str, Callable[[], Any]], threads: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds a call, sorted: the calls take turns, in an order drawn for each round."""
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads)
        for name, call in calls.items()
    }
    once = {name: timer.timeit(1).mean for name, timer in timers.items()}
    numbers = {name: max(1, math.ceil(BLOCK_SECONDS / once[name])) for name in timers}
    a_round = sum(numbers[name] * once[name] for name in timers)
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / a_round)))
    times: dict[str, list[float]] = {name: [] for name in timers}
    order, draw = list(timers), random.Random(0)
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            times[name].append(timers[name].timeit(numbers[name]).mean)
    return {name: sorted(values) for name, values in times.items()}


def measure(cell: Cell, seconds: float) -> Iterator[dict[str, Any]]:
    """One row for each mode and peer, and for the yardsticks.

    Raises:
        AssertionError: A peer's loss or gradient is wrong: it is not timed then.
    """
    torch.set_num_threads(cell.threads)
    inputs = make_inputs(cell)
    peers = peers_for(cell)
    reference = exact(inputs)
    allowed = 64 * torch.finfo(inputs.logits.dtype).eps
    found = {}
    for name, loss in peers.items():
        found[name] = errors(call_of(loss, inputs, MODES[-1]), reference)
        assert max(found[name]) <= allowed, f"{cell}: {name} is wrong by {found[name]}"
    del reference

    about = {
        "size": cell.size,
        "dtype": cell.dtype,
        "variant": cell.variant,
        "threads": cell.threads,
    }
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
                "median_s": quantile(times, 0.5),
                "lower_quartile_s": quantile(times, 0.25),
                "upper_quartile_s": quantile(times, 0.75),
                "rounds": len(times),
                "peak_bytes": peaks.get(name),
                "loss_error": loss_error,
                "grad_error": grad_error,
            }
