"""Which kernels the tests run on."""

import os

import torch

import softreg_ext  # noqa: F401 - its ops come first, for a library to take the place of their kernels

# The CUDA kernels compiled for the host (tests/cuda/test_on_host.py), in the place of the CPU's.
if "SOFTREG_CUDA_ON_HOST" in os.environ:
    torch.ops.load_library(os.environ["SOFTREG_CUDA_ON_HOST"])
