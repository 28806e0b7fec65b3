"""What nvcc makes of the kernels: nothing in local memory, rows moved 16 bytes at a time.

For every architecture that is built by default: in the extension, where it was built with them,
else compiled for this alone. The kernels' sources know nothing of torch but the two half types, so
that this need not run again beside another torch.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from source_tree import ROOT, load
from torch.utils import cpp_extension

from softreg_ext import _extension

setup = load("setup")
CUDA_HOME = setup.find_cuda_home(cpp_extension.CUDA_HOME)
if CUDA_HOME is None:
    pytest.skip("no nvcc with headers was found", allow_module_level=True)
SOURCES = sorted(ROOT.glob("csrc/cuda/*.cu"))
# How often each kernel is instantiated.
KERNELS = {
    "arch_kernel": 1,
    "cross_entropy_forward_kernel": 8,  # four dtypes; plain or not
    "merge_columns_kernel": 4,
    "add_totals_kernel": 8,  # in two sources
    "total_weight_kernel": 4,
    "cross_entropy_gradient_kernel": 12,  # of probabilities besides, never plain
    "cross_entropy_forward_with_gradient_kernel": 8,
}
# 16-byte loads, into registers or shared memory, and stores that a thread of a kernel needs: the
# slots of a round at least (launch_plan.h), or half of them where coefficients take registers too.
LOADS = {
    "cross_entropy_forward_kernel": 4,
    "cross_entropy_gradient_kernel": 4,
    "cross_entropy_forward_with_gradient_kernel": 4,
}
PLAIN_STORES = {
    "cross_entropy_gradient_kernel": 4,
    "cross_entropy_forward_with_gradient_kernel": 4,
}


class Kernel(NamedTuple):
    name: str
    parameters: str  # "<float, true>"
    arch: str

    @classmethod
    def of(cls, mangled: str, arch: str) -> "Kernel":
        filtered = output("c++filt", mangled)
        found = re.search(r"(\w+_kernel)(<.*?>)?\(", filtered)
        assert found, filtered
        return cls(found[1], found[2] or "", arch)

    def least_stores(self) -> int:
        stores = PLAIN_STORES.get(self.name, 0)
        return stores if self.parameters.endswith("true>") else stores // 2


def output(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout + run.stderr


ARCH_LIST = setup.default_archs(setup.nvcc_output(CUDA_HOME, "--list-gpu-arch"))
ARCHS = [arch.replace(".", "") for arch in ARCH_LIST.removesuffix("+PTX").split(";")]


def compiled(folder: Path) -> list[Path]:
    includes = [f"-I{path}" for path in (ROOT / "csrc", *cpp_extension.include_paths())]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    flags = ["-O3", "-std=c++20", *cpp_extension.COMMON_NVCC_FLAGS, *includes, *targets]

    def compile_one(source: Path) -> Path:
        result = folder / f"{source.stem}.fatbin"
        output(str(CUDA_HOME / "bin/nvcc"), "-fatbin", *flags, str(source), "-o", str(result))
        return result

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, SOURCES))


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    build = _extension.BUILD
    if build.cuda and build.cuda_archs == ARCH_LIST:
        return [build.folder / build.library]
    return compiled(tmp_path_factory.mktemp("resources"))


def expected() -> dict[tuple[str, str], int]:
    return {(name, f"sm_{arch}"): n for name, n in KERNELS.items() for arch in ARCHS}


def counted(kernels: list[Kernel]) -> dict[tuple[str, str], int]:
    names = [(kernel.name, kernel.arch) for kernel in kernels]
    return {name: names.count(name) for name in names}


def test_the_table_names_what_the_sources_define() -> None:
    text = "".join(path.read_text() for path in sorted(ROOT.glob("csrc/cuda/*.cu*")))
    assert set(re.findall(r"__global__[^{;]*?(\w+_kernel)\(", text)) == set(KERNELS)
    assert text.count("__global__") == len(KERNELS)


def cuobjdump() -> str | None:
    """The toolkit's, or the one that comes with Triton."""
    triton = importlib.util.find_spec("triton")
    folders = [CUDA_HOME / "bin"]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    found = [str(folder / "cuobjdump") for folder in folders if (folder / "cuobjdump").exists()]
    return found[0] if found else shutil.which("cuobjdump")


def dumped(option: str, files: list[Path]) -> Iterator[tuple[str, str]]:
    """What the tool prints of each architecture in each file."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump, neither in the toolkit nor beside Triton")

    def dump(job: tuple[Path, str]) -> str:
        return output(tool, option, "-arch", f"sm_{job[1]}", str(job[0]))

    jobs = [(file, arch) for file in files for arch in ARCHS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from zip([f"sm_{arch}" for _, arch in jobs], pool.map(dump, jobs), strict=True)


def test_nothing_is_spilled(machine_code: list[Path]) -> None:
    """Registers hold everything: no stack frame in any function, on any architecture."""
    kernels, in_memory = [], []
    for arch, listing in dumped("-res-usage", machine_code):
        functions = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+) .*?LOCAL:(\d+)", listing)
        in_memory += [(arch, *function) for function in functions if function[1:] != ("0", "0")]
        kernels += [Kernel.of(name, arch) for name, *_ in functions]
    assert counted(kernels) == expected()
    assert in_memory == []


def test_rows_move_16_bytes_at_a_time(machine_code: list[Path]) -> None:
    """In the machine code, which ptxas has the last word on."""
    kernels, narrow = [], []
    for arch, listing in dumped("-sass", machine_code):
        functions = re.split(r"\n\s*Function : (\S+)\n", listing)
        for mangled, code in zip(functions[1::2], functions[2::2], strict=True):
            kernel = Kernel.of(mangled, arch)
            kernels.append(kernel)
            loads = len(re.findall(r"\b(?:LDG|LDGSTS)\.\S*\b128\b", code))
            stores = len(re.findall(r"\bSTG\.\S*\b128\b", code))
            local = re.findall(r"\b(?:LDL|STL)\b.*", code)
            if local or loads < LOADS.get(kernel.name, 0) or stores < kernel.least_stores():
                narrow.append((*kernel, f"{loads} loads, {stores} stores", local))
    assert counted(kernels) == expected()
    assert narrow == []
