"""Which kernels the tests run on, and where."""

import os

import pytest
import torch
from cases import DEVICE

import softreg_ext  # noqa: F401 - its ops come first, for a library to take the place of their kernels
from softreg_ext._extension import BUILD

# The CUDA kernels compiled for the host (tests/cuda/test_on_host.py), in the place of the CPU's.
if "SOFTREG_CUDA_ON_HOST" in os.environ:
    torch.ops.load_library(os.environ["SOFTREG_CUDA_ON_HOST"])
# The same tests elsewhere (tests/cuda/test_gpu.py).
if "SOFTREG_DEVICE" in os.environ:
    torch.set_default_device(DEVICE)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    if BUILD.cuda is None:
        pytest.skip(f"built without CUDA kernels: {BUILD.cuda_reason}")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
