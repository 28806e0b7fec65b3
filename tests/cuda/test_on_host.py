"""The CUDA kernels, run on the host: the same sources, a shim in the place of the GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shim import build, run

TESTS = Path(__file__).parents[1]
# What runs on the kernels: values, gradients, layouts, options.
SUITES = ["functional", "k_dimensional", "probabilities", "beyond_the_original", "sums"]
SUITES += ["forward_with_gradient", "early_gradient"]
BAD_LABEL = "cross_entropy: target is neither in [0, classes) nor ignore_index"
pytestmark = pytest.mark.skipif(
    "SOFTREG_CUDA_ON_HOST" in os.environ, reason="the kernels are in place in this process already"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cuda_on_host"))


@pytest.mark.parametrize("name", SUITES)
def test_whole_option_table(library: Path, name: str) -> None:
    """As on the CPU, but for labels out of range: no IndexError comes back from a GPU."""
    done = run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-m", "not index_error", str(TESTS / f"test_{name}.py")),
        ],
        SOFTREG_CUDA_ON_HOST=str(library),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


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


@pytest.mark.parametrize(
    ("rows", "classes", "offset"),
    [
        (1, 70001, 0),
        (2, 20011, 1),
        (5, 3001, 3),
        (600, 10, 0),
        (400, 2100, 0),
        (9, 1000, 2),
        (1, 1, 0),
        (0, 7, 0),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_launch_shape_and_alignment(
    library: Path, rows: int, classes: int, offset: int, dtype: str
) -> None:
    """One block, several, several rows to each, columns split; rows that begin anywhere."""
    done = python(
        library,
        f"""
import torch.nn.functional as F
torch.manual_seed(0)
rows, classes, offset, dtype = {rows}, {classes}, {offset}, torch.{dtype}
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
    eps, is_half = torch.finfo(dtype).eps, dtype.itemsize == 2
    # A half type's results are rounded once; float16 has gradients below its normal numbers.
    rtol, atol = (eps, 2.0**-24) if is_half else (4 * eps, 4 * eps)
    torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=atol)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=eps, atol=atol)
""",
    )
    assert done.returncode == 0, done.stderr[-2000:]
