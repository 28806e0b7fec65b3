"""Every instruction set of this machine, each forced in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import pytest
import torch
from suites import KERNEL_SUITES, Done, assert_passed, run_suite, side_by_side

from softreg_ext import _extension

CAPABILITIES = {"generic": "default", "avx2": "avx2", "avx512": "avx512"}
# torch's name for what this processor has; each includes those before it.
AVAILABLE = {"DEFAULT": 1, "AVX2": 2, "AVX512": 3}.get(torch.backends.cpu.get_cpu_capability(), 1)
ACTIVE = _extension._C.build_info()["active_cpu_kernels"]
# Half types are multiplied as float32 where a lesser set is all there is.
SUITES = [*KERNEL_SUITES, "test_linear_products.py"]
pytestmark = pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ, reason="an instruction set is forced in this process"
)


def why_not(name: str) -> str | None:
    if name not in _extension._C.build_info()["cpu_kernels"]:
        return f"{name} kernels are not compiled for this processor family"
    if list(CAPABILITIES).index(name) >= AVAILABLE:
        return f"this processor has no {name}"
    return None


def why_not_again(name: str) -> str | None:
    if name == ACTIVE:
        return f"the tests of this process run on the {name} kernels"
    return why_not(name)


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[tuple[str, str], Future[Done]]]:
    jobs = {
        (name, suite): partial(run_suite, suite, "-x", ATEN_CPU_CAPABILITY=capability)
        for name, capability in CAPABILITIES.items()
        for suite in SUITES
        if not why_not_again(name)
    }
    with side_by_side(jobs) as begun:
        yield begun


@pytest.mark.parametrize("name", CAPABILITIES)
def test_is_what_runs(name: str) -> None:
    if missing := why_not(name):
        pytest.skip(missing)
    active = (
        "from softreg_ext import _extension as e; print(e._C.build_info()['active_cpu_kernels'])"
    )
    env = {**os.environ, "ATEN_CPU_CAPABILITY": CAPABILITIES[name]}
    run = subprocess.run(
        [sys.executable, "-c", active], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == name


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("name", CAPABILITIES)
def test_whole_option_table(
    runs: dict[tuple[str, str], Future[Done]], name: str, suite: str
) -> None:
    if missing := why_not_again(name):
        pytest.skip(missing)
    assert_passed(runs[name, suite].result())
