"""Where a figure was measured, and where it is kept."""

import platform
from pathlib import Path
from typing import Any

import torch

import softreg_ext
from softreg_ext.info import hardware

RESULTS = Path(__file__).parent / "results"


def surroundings() -> dict[str, Any]:
    """The columns that say where a row was measured."""
    here = hardware()
    return {
        "processor": here["processor"],
        "cores": here["cores"],
        "kernels": here["cpu_kernels"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "softreg_ext": softreg_ext.__version__,
    }
