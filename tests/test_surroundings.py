"""What may go on around a call: checkpoints, threads, forks, modes, compiled and packaged code."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import softreg_ext

FORWARD = torch.ops.softreg_ext.cross_entropy_forward.default
BACKWARD = torch.ops.softreg_ext.cross_entropy_backward.default
GRAD_TARGET = torch.ops.softreg_ext.cross_entropy_grad_target.default


def inputs(rows: int = 6, classes: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, classes, generator=generator)
    return logits, torch.arange(rows) % classes


def gradient(logits: Tensor, target: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    softreg_ext.cross_entropy(leaf, target).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant: bool) -> None:
    logits, target = inputs()
    leaf = logits.clone().requires_grad_()

    def half(x: Tensor) -> Tensor:
        return softreg_ext.cross_entropy(x.tanh(), target)

    checkpoint(half, leaf, use_reentrant=use_reentrant).backward()
    plain = logits.clone().requires_grad_()
    half(plain).backward()
    assert plain.grad is not None and torch.equal(leaf.grad, plain.grad)


def test_gradients_add_up_over_two_backwards() -> None:
    logits, target = inputs()
    leaf = logits.clone().requires_grad_()
    loss = softreg_ext.cross_entropy(leaf, target)
    loss.backward(retain_graph=True)
    loss.backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, 2 * gradient(logits, target))


def test_threads() -> None:
    """As DataParallel's replicas: a call and its backward in each of several threads."""
    cases = [inputs(rows, classes) for rows in (3, 64, 700) for classes in (10, 1000)]
    expected = [gradient(*case) for case in cases]
    found: list[list[Tensor]] = [[] for _ in cases]

    def work(number: int) -> None:
        for _ in range(10):
            found[number].append(gradient(*cases[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for results, exact in zip(found, expected, strict=True):
        assert len(results) == 10
        assert all(torch.equal(result, exact) for result in results)


# In a process of its own: what other tests leave running may hold a lock at the moment of the fork.
AFTER_FORK = """
import multiprocessing, torch, softreg_ext

def gradient():
    leaf = torch.linspace(-3, 3, 640000).reshape(64, -1).requires_grad_()
    softreg_ext.cross_entropy(leaf, torch.arange(64)).backward()
    return leaf.grad

def send(connection):
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    connection.send(gradient().sum(0).tolist())

torch.set_num_threads(2)
expected = gradient().sum(0).tolist()
ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
child = multiprocessing.get_context("fork").Process(target=send, args=(theirs,), daemon=True)
child.start()
assert ours.poll(60), "no answer from the child"
assert ours.recv() == expected
"""


# Each child would wait for ever for a lock that some thread held when it was born.
FORKS_BESIDE_THREADS = """
import os, threading, time, torch, softreg_ext

torch.set_num_threads(1)
logits, target = torch.randn(64, 1024), torch.arange(64)

def step():
    leaf = logits.clone().requires_grad_()
    softreg_ext.cross_entropy(leaf, target).backward()

def work():
    while True:
        step()

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
end = time.monotonic() + 10
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        softreg_ext.cross_entropy(logits.clone().requires_grad_(), target)
        os._exit(0)
    latest = time.monotonic() + 30
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        assert time.monotonic() < latest, "no end of the child"
        time.sleep(0.0005)
os._exit(0)
"""


def test_forks_beside_threads() -> None:
    """Not one in a thousand children waited where this went wrong: it may take several runs."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS_BESIDE_THREADS], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_after_fork() -> None:
    """In the child of a process that has used its threads."""
    run = subprocess.run([sys.executable, "-c", AFTER_FORK], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


class NoKernels:
    """The compiled module, as a device without kernels sees it."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any) -> None:
            raise NotImplementedError("Could not run, and a long list of backends")

        return refuse


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_devices_without_kernels_are_named(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (softreg_ext.functional, softreg_ext.linear):
        monkeypatch.setattr(module, "_C", NoKernels())
    with FakeTensorMode():
        there, target = torch.empty(4, 4, device="xpu"), torch.empty(4, device="xpu").long()
    layer = [there] if op == "linear_cross_entropy" else []
    with pytest.raises(NotImplementedError, match=f"^{op}: input is on xpu:0, for which .* no ker"):
        getattr(softreg_ext, op)(there, *layer, target)
    with pytest.raises(NotImplementedError, match=r"^Could not run"):
        getattr(softreg_ext, op)(*[torch.ones(4, 4)] * (1 + len(layer)), torch.ones(4))


def test_torch_function_mode() -> None:
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    logits, target = inputs()
    with Mode():
        loss = softreg_ext.cross_entropy(logits, target, return_lse=True)
    assert seen[0] is softreg_ext.cross_entropy
    assert torch.equal(loss[0], softreg_ext.cross_entropy(logits, target))


class Ops(TorchDispatchMode):
    """The ops that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


LABELS = inputs()[1]
PROBABILITIES = inputs()[0].softmax(1)
IMAGE = torch.randn(2, 5, 3, 4)
# Every form that is fused: logits, target, options.
FORMS: dict[str, tuple[Tensor, Tensor, dict[str, Any]]] = {
    **{
        str(dtype): (inputs()[0], LABELS.to(dtype), {})
        for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
    },
    **{name: (inputs()[0], LABELS, {"reduction": name}) for name in ("none", "mean", "sum")},
    "smoothing": (inputs()[0], LABELS, {"label_smoothing": 0.1}),
    "weight": (inputs()[0], LABELS, {"weight": torch.rand(40)}),
    "ignored": (inputs()[0], LABELS, {"ignore_index": 3}),
    "probabilities": (inputs()[0], PROBABILITIES, {}),
    "all of it": (inputs()[0], PROBABILITIES, {"label_smoothing": 0.1, "weight": torch.rand(40)}),
    "without a batch": (inputs()[0][0], torch.tensor(3), {}),
    "image": (IMAGE, IMAGE.argmax(1), {}),
    "image, channels last": (
        IMAGE.contiguous(memory_format=torch.channels_last),
        IMAGE.softmax(1),
        {"label_smoothing": 0.1},
    ),
    "z_loss": (inputs()[0], LABELS, {"z_loss": 0.1}),
    "transformed": (inputs()[0], LABELS, {"logit_scale": 2.0, "softcap": 3.0}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_form_is_fused(form: str, dtype: torch.dtype) -> None:
    """One op for each result, and none that computes besides it."""
    logits, target, options = FORMS[form]
    target = target.to(dtype) if target.is_floating_point() else target
    options = {n: x.to(dtype) if isinstance(x, Tensor) else x for n, x in options.items()}
    leaf = logits.to(dtype).detach().requires_grad_()
    gradients = [BACKWARD]
    if target.is_floating_point():
        target = target.detach().requires_grad_()
        gradients.append(GRAD_TARGET)
    with Ops() as ops:
        loss = softreg_ext.cross_entropy(leaf, target, **options)
        loss.backward(torch.ones_like(loss))
    bookkeeping = {torch.ops.aten.ones_like.default, torch.ops.aten.detach.default}
    assert [op for op in ops.seen if op not in bookkeeping] == [FORWARD, *gradients]


@pytest.mark.filterwarnings("ignore")  # the tracers warn of their own insides
class TestCompiled:
    def test_one_graph_for_all_batch_sizes(self) -> None:
        torch._dynamo.reset()
        graphs = []

        def backend(graph: torch.fx.GraphModule, example: list[Any]) -> Any:
            graphs.append(graph)
            return graph

        step = torch.compile(softreg_ext.cross_entropy, backend=backend, fullgraph=True)
        for rows in range(5, 20):
            logits, target = inputs(rows)
            eager = softreg_ext.cross_entropy(logits, target)
            torch.testing.assert_close(step(logits, target), eager)
        assert len(graphs) == 2  # the first size as it is, then any

    def test_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """AOTInductor: exported, compiled to a library, packaged, loaded."""
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

        class Net(torch.nn.Module):
            def forward(self, logits: Tensor, target: Tensor) -> Tensor:
                return softreg_ext.cross_entropy(logits * 2, target)

        logits, target = inputs()
        program = torch.export.export(Net(), (logits, target))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "net.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(loaded(logits, target), Net()(logits, target))
