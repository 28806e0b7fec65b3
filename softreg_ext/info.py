"""`softreg info`: what a bug report needs to say."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from ._extension import _C, BUILD


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none visible"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name} (sm_{properties.major}{properties.minor})")
    return ", ".join(names)


def hardware() -> dict[str, str | int]:
    """What a figure depends on besides versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "cpu_kernels": _C.build_info()["active_cpu_kernels"],
        "gpu": _gpus(),
    }


def facts() -> Iterator[tuple[str, str]]:
    """Pairs of a name and a value, in the order of the report."""
    compiled = _C.build_info()
    yield "softreg_ext", BUILD.version
    yield "installed in", str(BUILD.folder)
    yield "Python", platform.python_version()
    yield "torch", f"{torch.__version__} (built for {BUILD.torch})"
    yield "platform", platform.platform()
    yield "processor", _processor()
    yield "threads", str(torch.get_num_threads())
    yield "CPU kernels", f"{compiled['active_cpu_kernels']} of {', '.join(compiled['cpu_kernels'])}"
    openmp = compiled["openmp"]
    yield "OpenMP", str(openmp) if openmp else "no: every op runs on one thread"
    yield "compiler", f"{compiled['compiler']}, C++ {compiled['cxx_standard']}"
    yield "flags", " ".join(BUILD.cxx_flags)
    yield "CUDA code", f"{BUILD.cuda or 'none'}: {BUILD.cuda_reason}"
    yield "CUDA archs", BUILD.cuda_archs or "none"
    yield "GPU", _gpus()
    if BUILD.cuda and torch.cuda.is_available():
        arch = torch.ops.softreg_ext.kernel_arch(torch.empty((), device="cuda"))
        yield "GPU runs", f"sm_{arch.item()} code"


def report() -> str:
    """The facts as aligned lines."""
    return "\n".join(f"{name + ':':14} {value}" for name, value in facts())
