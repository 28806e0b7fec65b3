"""The gradient that the forward pass computes ahead: when, and that no bit depends on it."""

import collections
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from cases import DEVICE, check_changes_are_noticed, make_case
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import softreg_ext

RECORDED = {"forward", "forward_with_gradient"}
EARLY, LATE = {*RECORDED, "correction"}, {"forward", "backward"}
ON_CPU = DEVICE.type == "cpu"
ROWS = 64 if ON_CPU else 8192  # 256 KB, or 32 MB; what is smaller gains little


def large(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    logits, target, _ = make_case(rows, 1024, torch.float32)
    return logits.requires_grad_(), target


def gradient(loss: Tensor, logits: Tensor, upstream: float) -> Tensor:
    (grad,) = torch.autograd.grad(loss, logits, torch.full_like(loss, upstream))
    if not ON_CPU:  # what a GPU was given is known once it gets there
        torch.cuda.synchronize()
    return grad


def step(logits: Tensor, target: Tensor, upstream: float = 1.0, **options: Any) -> Tensor:
    return gradient(softreg_ext.cross_entropy(logits, target, **options), logits, upstream)


def names_of(function: Callable[[], object]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    return {event.key for event in profiled.key_averages()}


def ops_of(function: Callable[[], object]) -> set[str]:
    prefix = "softreg_ext::cross_entropy_"
    return {name.removeprefix(prefix) for name in names_of(function) if name.startswith(prefix)}


@pytest.fixture(autouse=True)
def upstream_was_1() -> None:
    """As in a process that trains: whatever came before is forgotten."""
    logits, target = large()
    for _ in range(100):
        if [ops_of(lambda: step(logits, target)) for _ in range(3)] == [EARLY] * 3:
            return
    raise AssertionError("no guess comes after 300 steps alike")


def is_taken(logits: Tensor, target: Tensor, upstream: float = 1.0) -> bool:
    """Whether the gradient is the one that the forward pass left: later ones are of zeros."""
    logits = logits.detach().clone().requires_grad_()
    loss = softreg_ext.cross_entropy(logits, target)
    logits.data.zero_()
    return len(gradient(loss, logits, upstream)[0].unique()) > 2


def test_a_step_takes_one_op() -> None:
    logits, target = large()
    assert ops_of(lambda: step(logits, target)) == EARLY
    assert ops_of(lambda: step(logits, target, reduction="sum")) == EARLY
    logits, target = large(ROWS - 1)
    assert ops_of(lambda: step(logits, target)) == LATE


def test_both_inputs_want_a_gradient() -> None:
    logits, _ = large()
    target = torch.softmax(logits.detach().flip(0), 1).requires_grad_()

    def of_both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(softreg_ext.cross_entropy(logits, target), (logits, target))

    def of_target() -> tuple[Tensor, ...]:
        loss = softreg_ext.cross_entropy(logits.detach(), target)
        return torch.autograd.grad(loss, target)

    assert ops_of(of_both) == {*EARLY, "grad_target"}
    assert ops_of(of_target) == {"forward", "grad_target"}
    assert torch.equal(of_both()[1], of_target()[0])


def test_another_upstream_gradient_is_learned() -> None:
    """As with a GradScaler: one wrong guess, and the next is right."""
    logits, target = large()
    assert is_taken(logits, target)
    assert [is_taken(logits, target, 0.75) for _ in range(4)] == [False, True, True, True]
    of_sum = step(logits, target, reduction="sum")
    torch.testing.assert_close(step(logits, target, 0.75), of_sum * (0.75 / ROWS))


def test_upstream_gradients_that_differ_each_time() -> None:
    """Guesses become rare."""
    logits, target = large()
    upstreams = iter(range(2, 1000))
    used = [ops_of(lambda: step(logits, target, next(upstreams))) for _ in range(16)]
    assert used == [EARLY, EARLY, *[LATE] * 4, EARLY, *[LATE] * 8, EARLY]
    used = [ops_of(lambda: step(logits, target, next(upstreams))) for _ in range(150)]
    assert 2 <= used.count(EARLY) <= 4


@pytest.mark.parametrize("pattern", [(1.0, 0.25), (1.0, 1.0, 0.25, 0.25)])
def test_upstream_gradients_in_turns(pattern: tuple[float, ...]) -> None:
    """As of two losses with weights of their own: half of the guesses would be wrong forever."""
    logits, target = large()
    upstreams = itertools.cycle(pattern)
    used = [ops_of(lambda: step(logits, target, next(upstreams))) for _ in range(150)]
    assert used.count(EARLY) < 25


@pytest.mark.parametrize("ahead", [1, 4])
def test_reports_that_come_late(ahead: int) -> None:
    """As a GPU's do: while a guess is tried, no other is made."""
    logits, target = large()
    losses: collections.deque[Tensor] = collections.deque()
    used = []

    def record() -> None:
        losses.append(softreg_ext.cross_entropy(logits, target))

    for i in range(150):
        used.append(ops_of(record))
        if len(losses) > ahead:
            gradient(losses.popleft(), logits, 2.0 + i)
    assert used.count(RECORDED) < 15


@pytest.mark.skipif(ON_CPU, reason="a CPU reports at once")
def test_one_guess_until_its_report() -> None:
    logits, target = large()
    step(logits, target, 0.75)
    torch.cuda._sleep(2_000_000_000)

    def unwatched_step() -> None:
        loss = softreg_ext.cross_entropy(logits, target)
        torch.autograd.grad(loss, logits, torch.full_like(loss, 0.5))

    assert [ops_of(unwatched_step) for _ in range(4)] == [EARLY, LATE, LATE, LATE]


def test_losses_of_rows() -> None:
    """Their sum sends the same back to each; weighted, they get one each, which nobody expects."""
    logits, target = large()
    weights = torch.linspace(0, 1, len(target))

    def of_sum() -> Tensor:
        losses = softreg_ext.cross_entropy(logits, target, reduction="none")
        return torch.autograd.grad(losses.sum(), logits)[0]

    def of_weighted_sum() -> Tensor:
        losses = softreg_ext.cross_entropy(logits, target, reduction="none")
        return torch.autograd.grad(losses @ weights, logits)[0]

    assert ops_of(of_sum) == EARLY
    assert torch.equal(of_sum(), step(logits, target, reduction="sum"))
    in_vain = {*RECORDED, "backward"}
    used = [ops_of(of_weighted_sum) for _ in range(7)]
    assert used == [in_vain, in_vain, *[LATE] * 4, in_vain]
    torch.testing.assert_close(of_weighted_sum(), of_sum() * weights[:, None])


def test_zeros_keep_their_sign() -> None:
    logits, target = large()
    grads = [step(logits, target, upstream) for upstream in (0.0, 0.0, 0.0, -0.0, -0.0)]
    negative = [torch.signbit(grad) for grad in grads]
    assert torch.equal(negative[0], negative[2])
    assert torch.equal(negative[3], ~negative[0]) and torch.equal(negative[4], ~negative[0])


def test_gradients_that_nobody_comes_for() -> None:
    """Two may wait: what records losses and never goes back pays no more than that."""
    logits, target = large()
    losses: list[Tensor] = []

    def record() -> None:
        losses.append(softreg_ext.cross_entropy(logits, target))

    assert [ops_of(record) for _ in range(3)] == [RECORDED, RECORDED, {"forward"}]
    grads = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])
    assert ops_of(record) == RECORDED


def test_losses_kept_beside_a_training_loop() -> None:
    """They hold two gradients, however many backward passes come for others."""
    logits, target = large()
    kept, used = [], []

    def record() -> None:
        kept.append(softreg_ext.cross_entropy(logits, target))

    for _ in range(4):
        used.append(ops_of(record))
        step(logits, target)
    assert used == [RECORDED, RECORDED, {"forward"}, {"forward"}]
    kept.clear()
    step(logits, target)
    assert ops_of(record) == RECORDED


def test_gradients_that_are_kept_wait_no_more() -> None:
    logits, target = large()
    kept: list[Tensor] = []
    for _ in range(4):
        assert ops_of(lambda: kept.append(step(logits, target))) == EARLY


@pytest.mark.index_error
def test_bad_labels_wait_for_nothing() -> None:
    logits, target = large()
    for _ in range(3):
        with pytest.raises(IndexError):
            softreg_ext.cross_entropy(logits, target + 1024)
    assert ops_of(lambda: step(logits, target)) == EARLY


@pytest.mark.skipif(
    sys.platform != "linux" or not ON_CPU or "SOFTREG_CUDA_ON_HOST" in os.environ,
    reason="only the CPU's kernels keep what is freed, on Linux",
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_freed_by_a_backward_pass_without_a_use_for_it(create_graph: bool) -> None:
    """The loss, kept, would keep it too."""
    logits, _ = large(16 * ROWS)
    target = torch.softmax(logits.detach().double(), 1).requires_grad_()
    softreg_ext.release_memory()
    loss = softreg_ext.cross_entropy(logits, target)
    grads = torch.autograd.grad(loss, logits if create_graph else target, create_graph=create_graph)
    assert softreg_ext.release_memory() == logits.nbytes
    del loss, grads


def test_backward_twice() -> None:
    """It is given away once: who has it may change it."""
    logits, target = large()
    loss = softreg_ext.cross_entropy(logits, target)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    copy = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(second, copy)


def test_becomes_the_leafs_gradient_without_a_copy() -> None:
    logits, target = large()
    loss = softreg_ext.cross_entropy(logits, target)
    assert not {"aten::clone", "aten::copy_"} & names_of(loss.backward)
    assert logits.grad is not None and torch.equal(logits.grad, step(logits, target))


def test_second_derivatives() -> None:
    logits, target = large()
    loss = softreg_ext.cross_entropy(logits, target)
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    assert grad.requires_grad
    torch.testing.assert_close(grad.detach(), step(logits, target), rtol=1e-4, atol=1e-8)


def test_changed_logits_are_noticed() -> None:
    check_changes_are_noticed(*large())


def test_saved_tensors_that_are_packed() -> None:
    """Who offloads what is saved, or drops it, gets no gradient to keep besides."""
    logits, target = large()

    def doubled(x: Tensor) -> Tensor:
        return softreg_ext.cross_entropy(x * 2, target)

    loss = checkpoint(doubled, logits, use_reentrant=False)
    assert ops_of(loss.backward) == LATE  # the forward pass again
    with torch.autograd.graph.save_on_cpu():
        assert ops_of(lambda: step(logits, target)) == LATE


def test_modes_see_the_usual_ops() -> None:
    names = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.add(func.name().removeprefix("softreg_ext::cross_entropy_"))
            return func(*args, **(kwargs or {}))

    with Names():
        step(*large())
    assert names >= LATE and "forward_with_gradient" not in names


class Wrapped(Tensor):
    """A subclass that knows the usual ops by name."""

    seen: ClassVar[set[str]] = set()
    wrapped: Tensor

    @staticmethod
    def __new__(cls, wrapped: Tensor) -> "Wrapped":
        made: Wrapped = Tensor._make_wrapper_subclass(cls, wrapped.shape, dtype=wrapped.dtype)
        made.wrapped = wrapped
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.add(func.name().removeprefix("softreg_ext::cross_entropy_"))
        return func(*(x.wrapped if isinstance(x, Wrapped) else x for x in args), **(kwargs or {}))


def test_subclasses_see_the_usual_ops() -> None:
    logits, target = large()
    step(logits, target, weight=Wrapped(torch.ones(1024)))
    assert Wrapped.seen >= LATE and "forward_with_gradient" not in Wrapped.seen


@pytest.mark.index_error
def test_bad_labels() -> None:
    logits, target = large()
    target[7] = 1024
    with pytest.raises(IndexError, match="target 1024 at row 7"):
        softreg_ext.cross_entropy(logits, target)


@pytest.mark.filterwarnings("ignore")  # the tracers warn of their own insides
def test_compiled_autograd() -> None:
    logits, target = large()
    torch._dynamo.reset()
    loss = softreg_ext.cross_entropy(logits, target)
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        loss.backward()
    assert logits.grad is not None and torch.equal(logits.grad, step(logits, target))
