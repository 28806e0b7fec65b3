"""Every instruction set of this machine, each forced in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softreg_ext import _extension

CAPABILITIES = {"generic": "default", "avx2": "avx2", "avx512": "avx512"}
# torch's name for what this processor has; each includes those before it.
AVAILABLE = {"DEFAULT": 1, "AVX2": 2, "AVX512": 3}.get(torch.backends.cpu.get_cpu_capability(), 1)
# What runs on the kernels: values, gradients, bad labels.
SUITES = ["test_functional.py", "test_k_dimensional.py", "test_large_gradients.py"]
SUITES += ["test_probabilities.py", "test_forward_with_gradient.py", "test_sums.py"]
SUITES += ["test_few_long_rows.py", "cpu/test_rounding.py"]
FORCED = "ATEN_CPU_CAPABILITY" in os.environ


@pytest.mark.skipif(FORCED, reason="an instruction set is already forced in this process")
@pytest.mark.parametrize("name", CAPABILITIES)
def test_whole_option_table(name: str) -> None:
    if name not in _extension._C.build_info()["cpu_kernels"]:
        pytest.skip(f"{name} kernels are not compiled for this processor family")
    if list(CAPABILITIES).index(name) >= AVAILABLE:
        pytest.skip(f"this processor has no {name}")
    env = {**os.environ, "ATEN_CPU_CAPABILITY": CAPABILITIES[name]}
    active = (
        "from softreg_ext import _extension as e; print(e._C.build_info()['active_cpu_kernels'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", active], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == name
    suites = [Path(__file__).parents[1] / suite for suite in SUITES]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, suites)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
