"""What nvcc makes of the kernels: nothing in local memory, rows moved 16 bytes at a time.

For every architecture that is built by default. The kernels' sources know nothing of torch but the
two half types, so that this need not run again beside another torch.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from source_tree import ROOT, load
from torch.utils import cpp_extension

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
    "cross_entropy_gradient_kernel": 16,  # of the logits or of probabilities besides
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


def archs() -> list[str]:
    listed = setup.default_archs(setup.nvcc_output(CUDA_HOME, "--list-gpu-arch"))
    return [arch.replace(".", "") for arch in listed.removesuffix("+PTX").split(";")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resources")


@pytest.fixture(scope="module")
def report(folder: Path) -> str:
    """What ptxas says; leaves the machine code in the folder."""
    includes = [f"-I{path}" for path in (ROOT / "csrc", *cpp_extension.include_paths())]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs()]
    flags = ["-O3", "-std=c++20", *cpp_extension.COMMON_NVCC_FLAGS, *includes, *targets]
    return "".join(
        output(
            *(str(CUDA_HOME / "bin/nvcc"), "-fatbin", "-Xptxas", "-v", *flags, str(source)),
            *("-o", str(folder / f"{source.stem}.fatbin")),
        )
        for source in SOURCES
    )


def expected() -> dict[tuple[str, str], int]:
    return {(name, f"sm_{arch}"): n for name, n in KERNELS.items() for arch in archs()}


def counted(kernels: list[Kernel]) -> dict[tuple[str, str], int]:
    names = [(kernel.name, kernel.arch) for kernel in kernels]
    return {name: names.count(name) for name in names}


def test_the_table_names_what_the_sources_define() -> None:
    text = "".join(path.read_text() for path in sorted(ROOT.glob("csrc/cuda/*.cu*")))
    assert set(re.findall(r"__global__[^{;]*?(\w+_kernel)\(", text)) == set(KERNELS)
    assert text.count("__global__") == len(KERNELS)


def test_nothing_is_spilled(report: str) -> None:
    """Registers hold everything: no stack frame in any function, on any architecture."""
    entries = re.findall(r"Compiling entry function '(\S+)' for '(\w+)'", report)
    assert counted([Kernel.of(*entry) for entry in entries]) == expected()
    numbers = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    properties = re.findall(rf"Function properties for (\S+)\s+{numbers}", report)
    assert len(properties) >= len(entries)
    assert [function for function in properties if function[1:] != ("0", "0", "0")] == []


def cuobjdump() -> str | None:
    """The toolkit's, or the one that comes with Triton."""
    triton = importlib.util.find_spec("triton")
    folders = [CUDA_HOME / "bin"]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    found = [str(folder / "cuobjdump") for folder in folders if (folder / "cuobjdump").exists()]
    return found[0] if found else shutil.which("cuobjdump")


@pytest.mark.usefixtures("report")
def test_rows_move_16_bytes_at_a_time(folder: Path) -> None:
    """In the machine code, which ptxas has the last word on."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump, neither in the toolkit nor beside Triton")
    kernels, narrow = [], []
    for source in SOURCES:
        listing = output(tool, "-sass", str(folder / f"{source.stem}.fatbin"))
        for of_arch in re.split(r"\n(?=arch = sm_)", listing)[1:]:
            arch = of_arch.split()[2]
            functions = re.split(r"\n\s*Function : (\S+)\n", of_arch)
            for mangled, code in zip(functions[1::2], functions[2::2], strict=True):
                kernels.append(Kernel.of(mangled, arch))
                loads = len(re.findall(r"\b(?:LDG|LDGSTS)\.\S*\b128\b", code))
                stores = len(re.findall(r"\bSTG\.\S*\b128\b", code))
                local = re.findall(r"\b(?:LDL|STL)\b.*", code)
                kernel = kernels[-1]
                if local or loads < LOADS.get(kernel.name, 0) or stores < kernel.least_stores():
                    narrow.append((*kernel, f"{loads} loads, {stores} stores", local))
    assert counted(kernels) == expected()
    assert narrow == []
