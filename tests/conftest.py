"""Which kernels the tests run on, and where."""

import os
from collections.abc import Iterator

# Suites run side by side: threads that wait leave the processor to the others. Read by OpenMP when
# torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from cases import DEVICE
from surroundings import why_no_gpu

# Its ops come first, for a library to take their kernels' place.
from softreg_ext._extension import _C

# The CUDA kernels compiled for the host (tests/cuda/test_on_host.py), in the place of the CPU's.
if "SOFTREG_CUDA_ON_HOST" in os.environ:
    torch.ops.load_library(os.environ["SOFTREG_CUDA_ON_HOST"])
# The same tests elsewhere (tests/cuda/test_gpu.py).
if "SOFTREG_DEVICE" in os.environ:
    torch.set_default_device(DEVICE)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and (missing := why_no_gpu()):
        pytest.skip(missing)


@pytest.fixture
def small_chunks() -> Iterator[None]:
    """Of linear_cross_entropy: seven rows of fifty float32 logits at a time, fifteen in half."""
    before = _C.set_chunk_bytes(1500)
    yield
    _C.set_chunk_bytes(before)
