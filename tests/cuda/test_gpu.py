"""On a GPU: the suites of the CPU, and what only a GPU has: streams, graphs, devices, sizes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from suites import assert_passed, run_suite
from torch import Tensor

import softreg_ext

pytestmark = pytest.mark.cuda

# What runs on the kernels: values, gradients, layouts, options, derivatives, tracers.
SUITES = [
    *("functional", "k_dimensional", "probabilities", "beyond_the_original"),
    *("properties", "autograd", "pytorch_inputs"),
    *("sums", "forward_with_gradient", "early_gradient"),
    *("in_place", "linear", "linear_arguments", "linear_autocast", "linear_products"),
]
BAD_LABEL = "cross_entropy: target is neither in [0, classes) nor ignore_index"
# Lanes, a warp and a block to a row; columns split; more rows than blocks.
SHAPES = [(256, 10), (4096, 1000), (50, 5003), (2, 300001), (20000, 3001)]
LARGE = (8192, 2048)  # from 32 MB on the forward pass computes the gradient too
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize("name", SUITES)
def test_whole_option_table(name: str) -> None:
    """As on the CPU, but for labels out of range: no IndexError comes back from a GPU."""
    options = ("-m", "not index_error")
    assert_passed(run_suite(f"test_{name}.py", *options, SOFTREG_DEVICE="cuda"))


def test_the_cuda_kernels_are_what_runs() -> None:
    """A label out of range stops the device, by an assertion that names the op."""
    done = run(
        [
            *(sys.executable, "-c"),
            "import torch, softreg_ext; torch.set_default_device('cuda')\n"
            "softreg_ext.cross_entropy(torch.zeros(3, 5), torch.tensor([1, 5, 2]))\n"
            "torch.cuda.synchronize()",
        ]
    )
    assert done.returncode != 0
    assert BAD_LABEL in done.stdout + done.stderr


def make_case(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    logits = torch.randn(shape, generator=generator, device="cuda").to(dtype)
    target = torch.randint(shape[1], shape[:1], generator=generator, device="cuda")
    target[:: 3 + seed] = -100
    return logits, target


def loss_and_grad(function: Any, logits: Tensor, target: Tensor, **options: Any) -> list[Tensor]:
    leaf = logits.detach().requires_grad_()
    loss = function(leaf, target, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaf)]


def check(results: list[Tensor], logits: Tensor, target: Tensor, **options: Any) -> None:
    """Against float64, to the roundings that the launch shapes' test on the host allows."""
    exact = loss_and_grad(F.cross_entropy, logits.double(), target, **options)
    eps = torch.finfo(logits.dtype).eps
    torch.testing.assert_close(results[0].double(), exact[0], rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(results[1].double(), exact[1], rtol=eps, atol=2 * eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_bits_twice(shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits, target = make_case(shape, dtype)
    for reduction in ("none", "mean"):
        first, again = (
            loss_and_grad(softreg_ext.cross_entropy, logits, target, reduction=reduction)
            for _ in range(2)
        )
        if dtype != torch.float64:  # which the suites hold against the definition
            check(first, logits, target, reduction=reduction)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_current_stream(shape: tuple[int, int]) -> None:
    """Done while the default stream is still busy, and after what its own stream did before."""
    logits, target = make_case(shape, torch.float32)
    ready = torch.zeros_like(logits)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):  # whatever is loaded and allocated at first use
        loss_and_grad(softreg_ext.cross_entropy, logits, target)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    default_is_done = torch.cuda.Event()
    default_is_done.record()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        ready.copy_(logits)
        results = loss_and_grad(softreg_ext.cross_entropy, ready, target)
        stream.synchronize()
    assert not default_is_done.query()
    torch.cuda.synchronize()
    check(results, logits, target)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_graph_replays_with_other_inputs(shape: tuple[int, int], smoothing: float) -> None:
    logits, target = make_case(shape, torch.float32)
    options = {"label_smoothing": smoothing}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss_and_grad(softreg_ext.cross_entropy, logits, target, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = loss_and_grad(softreg_ext.cross_entropy, logits, target, **options)
    for seed in (1, 2):
        other = make_case(shape, torch.float32, seed)
        logits.copy_(other[0])
        target.copy_(other[1])
        graph.replay()
        check(results, *other, **options)


def test_graph_replays_with_another_upstream_gradient() -> None:
    """The gradient that the forward pass computes is for the one that came at capture."""
    logits, target = make_case(LARGE, torch.float32)
    leaf, upstream = logits.requires_grad_(), torch.ones((), device="cuda")

    def step() -> Tensor:
        loss = softreg_ext.cross_entropy(leaf, target)
        return torch.autograd.grad(loss, leaf, upstream)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grad = step()
    for factor in (1.0, 0.5, 3.0, 1.0):
        upstream.fill_(factor)
        graph.replay()
        torch.testing.assert_close(grad, expected * factor)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(64, 1000), LARGE], ids=str)
def test_host_never_waits(shape: tuple[int, int], reduction: str, kind: str) -> None:
    logits, target = make_case(shape, torch.bfloat16)
    if kind == "probabilities":
        target = logits.flip(0).softmax(1)
    weight = torch.rand(shape[1], device="cuda").bfloat16()
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, "z_loss": 0.1}
    with no_synchronisation():
        loss_and_grad(softreg_ext.cross_entropy, logits, target, **options)


@pytest.mark.parametrize("shape", [(50, 5003), LARGE], ids=str)
def test_a_device_that_is_not_the_current_one(shape: tuple[int, int]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    logits, target = (x.to("cuda:1") for x in make_case(shape, torch.float32))
    assert torch.cuda.current_device() == 0
    results = loss_and_grad(softreg_ext.cross_entropy, logits, target)
    assert {result.device for result in results} == {torch.device("cuda:1")}
    check(results, logits, target)


@pytest.mark.parametrize("shape", [(70001, 32000), (9, 250_000_001), (220_000_001, 10)], ids=str)
def test_more_than_2_to_the_31_logits(shape: tuple[int, int]) -> None:
    rows, classes = shape
    assert rows * classes > 2**31
    # logits and their gradient; states, labels and losses; the last row in float64
    needed = rows * classes * 2 * 2 + rows * 48 + classes * 8 * 6
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"takes {needed / 2**30:.0f} GiB of GPU memory")
    logits = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.randint(classes, (rows,), device="cuda")
    results = loss_and_grad(softreg_ext.cross_entropy, logits, target, reduction="none")
    last = slice(rows - 1, rows)
    check([x[last] for x in results], logits[last], target[last], reduction="none")
    torch.cuda.empty_cache()


@pytest.mark.filterwarnings("ignore")  # the tracers warn of their own insides
def test_compiled_into_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    compiled = torch.compile(
        softreg_ext.cross_entropy, mode="reduce-overhead", fullgraph=True, dynamic=False
    )
    for seed in range(4):
        logits, target = make_case((256, 1000), torch.float32, seed)
        results = [x.clone() for x in loss_and_grad(compiled, logits, target)]
        check(results, logits, target)
