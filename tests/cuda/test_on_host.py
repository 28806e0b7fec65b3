"""The CUDA kernels, run on the host: the same sources, a shim in the place of the GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

TESTS = Path(__file__).parents[1]
SHIM, CSRC = TESTS / "cuda_on_host", TESTS.parent / "csrc"
# What runs on the kernels: values, gradients, layouts, options.
SUITES = ["functional", "k_dimensional", "probabilities", "beyond_the_original"]
BAD_LABEL = "cross_entropy: target is neither in [0, classes) nor ignore_index"
pytestmark = pytest.mark.skipif(
    "SOFTREG_CUDA_ON_HOST" in os.environ, reason="the kernels are in place in this process already"
)
if not CSRC.exists():
    pytest.skip("the tests run without the source tree", allow_module_level=True)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Puts the CUDA ops in the place of the CPU's, once loaded."""
    folder = tmp_path_factory.mktemp("cuda_on_host")
    shared = [CSRC / f"{name}.cpp" for name in ("args", "checks", "row_matrix")]
    # The shim's headers in front of CUDA's own.
    includes = [f"-I{path}" for path in (SHIM, CSRC, *cpp_extension.include_paths())]
    objects = []
    for source in [SHIM / "ops.cpp", SHIM / "fibers.cpp", *shared]:
        objects.append(str(folder / f"{source.stem}.o"))
        flags = ["-std=c++20", "-O2", "-w", "-fPIC", *includes]
        compiled = run(["g++", *flags, "-c", str(source), "-o", objects[-1]])
        assert compiled.returncode == 0, compiled.stderr[-3000:]
    result = folder / "cuda_on_host.so"
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]
    linked = run(["g++", "-shared", *objects, *libraries, "-o", str(result)])
    assert linked.returncode == 0, linked.stderr[-3000:]
    return result


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
    grad, = torch.autograd.grad(ours.sum(), logits)
    exact_grad, = torch.autograd.grad(theirs.sum(), exact)
    again = softreg_ext.cross_entropy(logits, target, reduction=reduction)
    assert torch.equal(ours, again)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), theirs, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=eps, atol=2 * eps)
""",
    )
    assert done.returncode == 0, done.stderr[-2000:]
