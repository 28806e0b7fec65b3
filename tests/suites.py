"""Test files in processes of their own, as many at a time as there are processors."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Done = subprocess.CompletedProcess[str]

# What each instruction set's kernels do: values, gradients, bad labels.
KERNEL_SUITES = ["test_functional.py", "test_k_dimensional.py", "test_large_gradients.py"]
KERNEL_SUITES += ["test_probabilities.py", "test_forward_with_gradient.py", "test_sums.py"]
KERNEL_SUITES += ["test_few_long_rows.py", "test_in_place.py", "cpu/test_rounding.py"]
KERNEL_SUITES += ["test_beyond_the_original.py", "test_rows_together.py"]


def run_suite(file: str, *options: str, **environment: str) -> Done:
    """A test file of this folder, with options for pytest."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"),
            *(*options, str(Path(__file__).parent / file)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@contextmanager
def side_by_side(jobs: Mapping[Any, Callable[[], Any]]) -> Iterator[dict[Any, Future[Any]]]:
    """All under way, what became of each by its key; those not begun at the end never are."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            yield {key: pool.submit(job) for key, job in jobs.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def assert_passed(done: Done) -> None:
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
