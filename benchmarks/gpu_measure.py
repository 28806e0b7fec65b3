"""One cell on a GPU: every peer's result checked, then its time on the device and its memory."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from cells import Cell, Inputs, make_inputs
from gpu_peers import Peer, peers_for
from measure import (
    MEMORY_LOGITS,
    allowed_error,
    assert_right,
    call_of,
    errors,
    exact,
    in_turns,
    summary,
)
from peers import yardsticks
from report import OURS
from torch import Tensor

MODES = ("forward", "backward", "forward + backward")
GRAPHED_MODES = {"forward": "forward, in a graph", MODES[2]: "forward + backward, in a graph"}
GRAPHED_LOGITS = 1 << 23  # above, launches take no time beside the kernels
Row = dict[str, Any]


@dataclass(frozen=True)
class Steps:
    """What is timed, and what comes before it."""

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


def steps_of(call: Callable[[], Any]) -> Steps:
    return Steps(lambda _: call())


class Gpu:
    """Time and memory of the current device."""

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties().L2_cache_size
        self.elsewhere = torch.zeros(max(4 * cache, 1 << 28) // 4, device="cuda")

    def seconds(self, steps: Steps) -> float:
        """By the device's events, with nothing of the inputs in the L2."""
        prepared = steps.prepare()
        # read, not written: what is written is written back later, at the cost of what is timed
        self.elsewhere.sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        steps.run(prepared)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before

    def graph(self, call: Callable[[], Any]) -> Callable[[], None]:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(graph):
                call()
        finally:
            torch.cuda.synchronize()
        return graph.replay


def backward_steps(name: str, peer: Peer, inputs: Inputs) -> Steps:
    leaf = inputs.logits.detach().requires_grad_()
    # With hooks on what is saved, ours leaves the gradient to the backward pass, whatever the size.
    hooks: Any = nullcontext()
    if name == OURS:
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)

    def record() -> Tensor:
        with hooks:
            loss = peer.loss(leaf, inputs.target, **inputs.options)
        return loss if loss.dim() == 0 else loss.sum()

    return Steps(lambda loss: torch.autograd.grad(loss, leaf), record)


def inputs_of(peer: Peer, inputs: Inputs) -> Inputs:
    """Logits of its own for a peer that overwrites them: wrong from the second call on."""
    return replace(inputs, logits=inputs.logits.clone()) if peer.overwrites else inputs


class Measurement:
    """Those of a cell's peers that are right, and what became of the others."""

    def __init__(self, cell: Cell, gpu: Gpu) -> None:
        self.cell, self.gpu = cell, gpu
        self.inputs = make_inputs(cell)
        self.peers, self.left_out = peers_for(cell)
        self.errors: dict[str, tuple[float, float]] = {}
        for name in list(self.peers):
            self.attempt(name, partial(self.check, name))

    def check(self, name: str) -> None:
        peer = self.peers[name]
        call = call_of(peer.loss, inputs_of(peer, self.inputs), MODES[2])
        found = errors(call, exact(self.inputs))
        assert_right(self.cell, name, found, allowed_error(self.inputs))
        self.errors[name] = found

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Ours must work; another that does not is left out from here on, and says why."""
        try:
            return work()
        except Exception as error:
            if name == OURS:
                raise
            self.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del self.peers[name]
            return None

    def steps(self, mode: str) -> dict[str, Steps]:
        found = {name: steps_of(call) for name, call in yardsticks(self.inputs.logits).items()}
        for name, peer in self.peers.items():
            inputs = inputs_of(peer, self.inputs)
            if mode == "backward" and not peer.overwrites:
                found[name] = backward_steps(name, peer, inputs)
            elif mode != "backward":
                found[name] = steps_of(call_of(peer.loss, inputs, mode))
        return found

    def graphed(self, mode: str) -> dict[str, Steps]:
        """A peer that a graph cannot hold has no such timing."""
        found = {
            name: steps_of(self.gpu.graph(call))
            for name, call in yardsticks(self.inputs.logits).items()
        }
        for name, peer in self.peers.items():
            try:
                replay = self.gpu.graph(call_of(peer.loss, inputs_of(peer, self.inputs), mode))
            except Exception:
                if name == OURS:
                    raise
                continue
            found[name] = steps_of(replay)
        return found

    def timed(self, steps: dict[str, Steps], seconds: float) -> dict[str, list[float]]:
        def wall(name: str) -> float:
            begin = time.perf_counter()
            self.gpu.seconds(steps[name])
            return time.perf_counter() - begin

        for name in list(steps):  # compiled, tuned and allocated at the first call
            if name in self.peers:
                self.attempt(name, partial(self.gpu.seconds, steps[name]))
        order = [name for name in steps if name not in self.left_out]
        a_round = sum(wall(name) for name in order)
        return in_turns(order, lambda name: self.gpu.seconds(steps[name]), seconds / a_round)

    def rows(self, mode: str, steps: dict[str, Steps], seconds: float) -> Iterator[Row]:
        timings = self.timed(steps, seconds)
        peaks = {}
        if self.cell.logits >= MEMORY_LOGITS and mode == MODES[2]:
            peaks = {n: self.gpu.peak_bytes(partial(steps[n].run, None)) for n in self.peers}
        fewest = self.inputs.fewest_bytes(mode.removesuffix(", in a graph"))
        copied = 2 * self.inputs.logits.nbytes
        for name, times in timings.items():
            loss_error, grad_error = self.errors.get(name, (None, None))
            yield {
                **self.cell.columns,
                "mode": mode,
                "peer": name,
                **summary(times),
                "fewest_bytes": {"read": copied // 2, "copy": copied}.get(name, fewest),
                "peak_bytes": peaks.get(name),
                "loss_error": loss_error,
                "grad_error": grad_error,
                "note": "",
            }


def note(cell: Cell, peer: str, why: str) -> Row:
    """A row for what was not measured."""
    empty = dict.fromkeys(("median_s", "lower_quartile_s", "upper_quartile_s", "rounds"))
    more = dict.fromkeys(("fewest_bytes", "peak_bytes", "loss_error", "grad_error"))
    return {**cell.columns, "mode": "", "peer": peer, **empty, **more, "note": why}


def measure(cell: Cell, seconds: float, gpu: Gpu) -> Iterator[Row]:
    """One row for each mode and peer, for the yardsticks, and for each peer that was left out.

    Raises:
        AssertionError: Our own loss or gradient is wrong.
    """
    measurement = Measurement(cell, gpu)
    for mode in MODES:
        yield from measurement.rows(mode, measurement.steps(mode), seconds)
    if cell.logits <= GRAPHED_LOGITS:
        for mode, name in GRAPHED_MODES.items():
            yield from measurement.rows(name, measurement.graphed(mode), seconds)
    for peer, why in measurement.left_out.items():
        yield note(cell, peer, why)


def within(minutes: float | None, seconds: float) -> Callable[[Cell], Iterable[Row]]:
    """Measures cells until the time is up; later ones get a note that says so."""
    gpu, end = Gpu(), time.monotonic() + 60 * (minutes or math.inf)

    def rows_of(cell: Cell) -> Iterable[Row]:
        if time.monotonic() > end:
            return [note(cell, OURS, "time was up")]
        return measure(cell, seconds, gpu)

    return rows_of
