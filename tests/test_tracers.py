"""What torch.compile, torch.export and compiled autograd make of the ops."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad
from torch.fx.experimental.proxy_tensor import make_fx

import softreg_ext
from softreg_ext import cross_entropy, linear_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracers warn of their own insides


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> None:
    torch._dynamo.reset()


def make_inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 40, dtype=torch.float64), torch.tensor([0, 3, -100, 1, 2])


@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [("aot_eager", False), ("aot_eager", True), ("inductor", True)],
)
def test_compile(
    backend: str, dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def step(logits: Tensor, target: Tensor) -> Tensor:
        return softreg_ext.CrossEntropyLoss(reduction="none")(logits * 2, target).sum()

    compiled = torch.compile(step, backend=backend, dynamic=dynamic, fullgraph=True)
    for rows in (5, 6, 7):
        logits = torch.randn(rows, 40, requires_grad=True)
        target = torch.arange(rows)
        (ours,) = torch.autograd.grad(compiled(logits, target), logits)
        (eager,) = torch.autograd.grad(step(logits, target), logits)
        torch.testing.assert_close(ours, eager)


def test_compiled_autograd() -> None:
    logits, target = make_inputs()
    leaf, traced = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    cross_entropy(leaf, target).backward()
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        cross_entropy(traced, target).backward()
    torch.testing.assert_close(traced.grad, leaf.grad)


def test_export_keeps_one_node() -> None:
    class Net(torch.nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return cross_entropy(logits, target)

    logits, target = make_inputs()
    program = torch.export.export(Net(), (logits, target))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls[0] is torch.ops.softreg_ext.cross_entropy_forward.default
    torch.testing.assert_close(program.module()(logits, target), Net()(logits, target))


Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# Of logits (6, 5) and labels, some rows or classes each, so many as two masks choose.
CHOSEN: dict[str, Step] = {
    "rows": lambda x, y, a, b: cross_entropy(x[a], y[b]),
    "a loss for each row": lambda x, y, a, b: cross_entropy(x[a], y[b], reduction="none").sum(),
    "probabilities": lambda x, y, a, b: cross_entropy(x[a], x.detach()[b].softmax(1)),
    "positions": lambda x, y, a, b: cross_entropy(x.T[None, :, a], y[None, b]),
    "classes": lambda x, y, a, b: cross_entropy(x.T[:, a], y[:5] % 3, x.detach()[b, 0].exp()),
    "one row": lambda x, y, a, b: cross_entropy(x.T[0, a], y[b][:1] % 3),
    "input": lambda x, y, a, b: linear_cross_entropy(x[a], x.detach(), y[b]),
    "layer": lambda x, y, a, b: linear_cross_entropy(
        x[:, :3], x.detach()[a, :3], y % 3, linear_bias=x.detach()[b, 0]
    ),
}


class TestSizesKnownAtRunTime:
    @pytest.fixture(autouse=True)
    def in_graphs(self) -> Iterator[None]:
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            yield

    @pytest.mark.parametrize("step", CHOSEN.values(), ids=CHOSEN)
    def test_compile(self, step: Step) -> None:
        order = torch.arange(6)
        x, y = torch.randn(6, 5, requires_grad=True), order % 5
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        for a, b in ((order < 3, order > 2), (order > 0, order != 4)):
            both = [step(x, y, a, b), compiled(x, y, a, b)]
            torch.testing.assert_close(*both)
            torch.testing.assert_close(*(torch.autograd.grad(loss, x) for loss in both))

    @pytest.mark.parametrize("step", [CHOSEN["rows"], CHOSEN["probabilities"], CHOSEN["classes"]])
    def test_unequal(self, step: Step) -> None:
        x, y = torch.randn(6, 5), torch.arange(6) % 5
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        compiled(x, y, y < 3, y < 3)
        with pytest.raises(RuntimeError, match=r"u\d"):
            compiled(x, y, y < 3, y < 2)

    def test_export(self) -> None:
        class FirstRows(torch.nn.Module):
            def forward(self, x: Tensor, y: Tensor, count: Tensor) -> Tensor:
                n = count.item()
                torch._check(n <= x.shape[0])
                return cross_entropy(x[:n], y[:n])

        x, y = torch.randn(6, 5), torch.arange(6) % 5
        program = torch.export.export(FirstRows(), (x, y, torch.tensor(4))).module()
        for n in (3, 6):
            torch.testing.assert_close(program(x, y, torch.tensor(n)), cross_entropy(x[:n], y[:n]))

    def test_classes_under_transforms(self) -> None:
        def step(x: Tensor, y: Tensor, chosen: Tensor, smoothing: float) -> Tensor:
            return grad(cross_entropy)(x[:, chosen], y, label_smoothing=smoothing)

        x, y = torch.randn(6, 5), torch.arange(6) % 3
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        for smoothing in (0.0, 0.1):
            chosen = torch.arange(5) < 3 + 10 * smoothing
            ours, eager = (f(x, y, chosen, smoothing) for f in (compiled, step))
            torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("options", [{"size_average": False}, {"reduce": False}], ids=str)
def test_deprecated_arguments(options: dict[str, bool]) -> None:
    x, y = make_inputs()
    compiled = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y, **options), cross_entropy(x, y, **options))


class TestIgnoreIndex:
    losses: ClassVar[list[Any]] = [
        cross_entropy,
        lambda x, y, **options: linear_cross_entropy(x, torch.eye(5), y, **options),
    ]

    @pytest.mark.parametrize("loss", losses)
    def test_one_graph_for_all(self, loss: Any) -> None:
        def step(x: Tensor, y: Tensor, ignored: int) -> Tensor:
            return loss(x, y, ignore_index=ignored)

        x, y = torch.randn(6, 5, requires_grad=True), torch.arange(6) % 5
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(step, backend=counter, fullgraph=True)
        for ignored in (-100, 0, 1, 2, 3):
            both = [step(x, y, ignored), compiled(x, y, ignored)]
            torch.testing.assert_close(*both)
            torch.testing.assert_close(*(torch.autograd.grad(loss, x) for loss in both))
        assert counter.frame_count == 2  # with the first for a constant

    @pytest.mark.parametrize("loss", losses)
    @pytest.mark.parametrize("mode", ["symbolic", "fake"])
    def test_make_fx(self, loss: Any, mode: str) -> None:
        def step(x: Tensor, y: Tensor, ignored: Any) -> Tensor:
            return loss(x, y, ignore_index=ignored)

        x, y = torch.randn(6, 5), torch.arange(6) % 5
        kind: Any = int if mode == "symbolic" else torch.tensor
        graph = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(x, y, kind(2))
        torch.testing.assert_close(graph(x, y, kind(3)), step(x, y, 3))

    @pytest.mark.parametrize("loss", losses)
    def test_export(self, loss: Any) -> None:
        class Step(torch.nn.Module):
            def forward(self, x: Tensor, y: Tensor, ignored: Tensor) -> Tensor:
                return loss(x, y, ignore_index=ignored)

        x, y = torch.randn(6, 5), torch.arange(6) % 5
        program = torch.export.export(Step(), (x, y, torch.tensor(2))).module()
        torch.testing.assert_close(program(x, y, torch.tensor(3)), loss(x, y, ignore_index=3))

    @pytest.mark.parametrize("loss", losses)
    @pytest.mark.parametrize("ignored", [np.int64(1), np.array(1), torch.tensor(1)], ids=repr)
    def test_other_integers(self, loss: Any, ignored: Any) -> None:
        x, y = torch.randn(6, 5), torch.arange(6) % 5
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        expected = loss(x, y, ignore_index=1)
        assert torch.equal(loss(x, y, ignore_index=ignored), expected)
        assert torch.equal(compiled(x, y, ignore_index=ignored), expected)
