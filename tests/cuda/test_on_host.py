"""The CUDA kernels, run on the host: the same sources, a shim in the place of the GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from shim import build, run
from suites import Done, assert_passed, run_suite, side_by_side

# What runs on the kernels: values, gradients, layouts, options.
SUITES = ["functional", "k_dimensional", "probabilities", "beyond_the_original", "sums"]
SUITES += ["forward_with_gradient", "early_gradient", "in_place", "linear"]
SUITES += ["linear_arguments", "linear_autocast", "linear_products"]
BAD_LABEL = "cross_entropy: target is neither in [0, classes) nor ignore_index"
pytestmark = pytest.mark.skipif(
    "SOFTREG_CUDA_ON_HOST" in os.environ, reason="the kernels are in place in this process already"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture(scope="module")
def runs(library: Path) -> Iterator[dict[str, Future[Done]]]:
    """Labels out of range are left out: no IndexError comes back from a GPU."""
    on_host = {"SOFTREG_CUDA_ON_HOST": str(library), "OMP_NUM_THREADS": "1"}
    options = ("-x", "-m", "not index_error")
    jobs = {name: partial(run_suite, f"test_{name}.py", *options, **on_host) for name in SUITES}
    with side_by_side(jobs) as begun:
        yield begun


@pytest.mark.parametrize("name", SUITES)
def test_whole_option_table(runs: dict[str, Future[Done]], name: str) -> None:
    assert_passed(runs[name].result())


def python(library: Path, code: str) -> subprocess.CompletedProcess[str]:
    setup = f"import torch, softreg_ext; torch.ops.load_library({str(library)!r})\n"
    return run([sys.executable, "-c", setup + code])


def test_the_cuda_kernels_are_what_runs(library: Path) -> None:
    """A label out of range stops the CPU's kernel by an IndexError, a GPU's by an assertion."""
    done = python(library, "softreg_ext.cross_entropy(torch.zeros(3, 5), torch.tensor([1, 5, 2]))")
    assert done.returncode < 0
    assert BAD_LABEL in done.stderr


def test_classes_are_numbered_in_32_bits(library: Path) -> None:
    many = "torch.zeros(1).half().expand(1, 2**31 - 16)"
    done = python(library, f"softreg_ext.cross_entropy({many}, torch.tensor([0]))")
    assert (
        "input has 2147483632 classes, but the kernels of a GPU take at most 2147483631"
        in done.stderr
    )


# Rows, classes, and where in memory they begin: one block, several, several rows to each, columns
# split.
LAUNCHES = [
    *((1, 70001, 0), (2, 20011, 1), (5, 3001, 3), (600, 10, 0)),
    *((400, 2100, 0), (9, 1000, 2), (1, 1, 0), (0, 7, 0)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_launch_shape_and_alignment(library: Path, dtype: str) -> None:
    done = python(
        library,
        f"""
import torch.nn.functional as F
torch.manual_seed(0)
dtype = torch.{dtype}
eps, is_half = torch.finfo(dtype).eps, dtype.itemsize == 2
# A half type's results are rounded once; float16 has gradients below its normal numbers.
rtol, atol = (eps, 2.0**-24) if is_half else (4 * eps, 4 * eps)
for rows, classes, offset in {LAUNCHES}:
    print(rows, classes, offset, flush=True)
    logits = torch.randn(rows * classes + offset).to(dtype)[offset:].view(rows, classes)
    logits.requires_grad_()
    target = torch.randint(classes, (rows,))
    for reduction in ("none", "sum"):
        ours = softreg_ext.cross_entropy(logits, target, reduction=reduction)
        exact = logits.detach().double().requires_grad_()
        theirs = F.cross_entropy(exact, target, reduction=reduction)
        total = ours.sum()
        grad, = torch.autograd.grad(total, logits, retain_graph=True)
        late_grad, = torch.autograd.grad(total, logits)
        assert torch.equal(grad, late_grad)
        exact_grad, = torch.autograd.grad(theirs.sum(), exact)
        again = softreg_ext.cross_entropy(logits, target, reduction=reduction)
        assert torch.equal(ours, again)
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=atol)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=eps, atol=atol)
""",
    )
    assert done.returncode == 0, f"rows, classes, offset: {done.stdout}{done.stderr[-2000:]}"
