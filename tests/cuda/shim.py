"""Builds the shim (tests/cuda_on_host): the CUDA kernels' sources, a host in the GPU's place."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from source_tree import ROOT
from torch.utils import cpp_extension

SHIM, CSRC = ROOT / "tests/cuda_on_host", ROOT / "csrc"


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def build(folder: Path, *options: str) -> Path:
    """The library that puts the CUDA ops in the place of the CPU's, once loaded."""
    shared = [CSRC / f"{name}.cpp" for name in ("args", "checks", "row_matrix")]
    # The shim's headers in front of CUDA's own.
    includes = [f"-I{path}" for path in (SHIM, CSRC, *cpp_extension.include_paths())]
    flags = ["-std=c++20", "-O2", "-w", "-fPIC", *options, *includes]

    def compiled(source: Path) -> str:
        result = folder / f"{source.stem}.o"
        done = run(["g++", *flags, "-c", str(source), "-o", str(result)])
        assert done.returncode == 0, done.stderr[-3000:]
        return str(result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [SHIM / "ops.cpp", SHIM / "fibers.cpp", *shared]))
    result = folder / "cuda_on_host.so"
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]
    linked = run(["g++", "-shared", *options, *objects, *libraries, "-o", str(result)])
    assert linked.returncode == 0, linked.stderr[-3000:]
    return result
