"""Where a figure was measured, and where it is kept."""

import platform
from pathlib import Path
from typing import Any

import torch

import softreg_ext
from softreg_ext._extension import _C, BUILD
from softreg_ext.info import hardware

RESULTS = Path(__file__).parent / "results"


def why_no_gpu() -> str | None:
    """What a run on a GPU lacks here."""
    if BUILD.cuda is None:
        return f"softreg_ext is built without CUDA kernels: {BUILD.cuda_reason}"
    return None if torch.cuda.is_available() else "torch sees no GPU"


def lesser_kernel_sets() -> list[str]:
    """Those below the one in use, which its processor can run as well."""
    kernels = _C.build_info()
    compiled: list[str] = kernels["cpu_kernels"]
    return compiled[: compiled.index(kernels["active_cpu_kernels"])]


def surroundings(device: str = "cpu") -> dict[str, Any]:
    """The columns that say where a row was measured."""
    here = hardware()
    return {
        **({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
        "processor": here["processor"],
        "cores": here["cores"],
        "kernels": here["cpu_kernels"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "softreg_ext": softreg_ext.__version__,
    }


def heading(title: str, where: dict[str, Any]) -> list[str]:
    """The first lines of a report."""
    return [
        f"# {title}",
        "",
        ", ".join(f"{name} {value}" for name, value in where.items()) + ".",
        "",
    ]
