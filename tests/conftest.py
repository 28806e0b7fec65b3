"""Which kernels the tests run on, and where."""

import os

import pytest
import torch
from cases import DEVICE
from surroundings import why_no_gpu

import softreg_ext  # noqa: F401 - its ops come first, for a library to take the place of their kernels

# The CUDA kernels compiled for the host (tests/cuda/test_on_host.py), in the place of the CPU's.
if "SOFTREG_CUDA_ON_HOST" in os.environ:
    torch.ops.load_library(os.environ["SOFTREG_CUDA_ON_HOST"])
# The same tests elsewhere (tests/cuda/test_gpu.py).
if "SOFTREG_DEVICE" in os.environ:
    torch.set_default_device(DEVICE)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and (missing := why_no_gpu()):
        pytest.skip(missing)
