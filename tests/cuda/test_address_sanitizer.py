"""The CUDA kernels on the host under AddressSanitizer: nothing is touched beside what is given."""

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from shim import build, run
from suites import Done, side_by_side

FLAGS = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g1")


@pytest.fixture(scope="module")
def preloaded() -> str:
    """In front of Python's own; C++'s too, whose exceptions it looks for at the start."""
    names = ("libasan.so", "libstdc++.so")
    found = [run(["g++", f"-print-file-name={name}"]).stdout.strip() for name in names]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("g++ comes without AddressSanitizer")
    return " ".join(found)


@pytest.fixture(scope="module")
def library(preloaded: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sanitized"), *FLAGS)


@pytest.fixture(scope="module")
def runs(preloaded: str, library: Path) -> Iterator[dict[str, Future[Done]]]:
    def guarded_rows(what: str) -> Done:
        return run(
            [sys.executable, str(Path(__file__).with_name("guarded_rows.py")), str(library), what],
            LD_PRELOAD=preloaded,
            ASAN_OPTIONS="detect_leaks=0",
            OMP_NUM_THREADS="1",
        )

    with side_by_side(
        {what: partial(guarded_rows, what) for what in ("rows", "ends", "trap")}
    ) as f:
        yield f


@pytest.mark.parametrize("what", ["rows", "ends"])
def test_guarded_rows(runs: dict[str, Future[Done]], what: str) -> None:
    done = runs[what].result()
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "touched nothing else\n"
    assert "AddressSanitizer" not in done.stderr


def test_a_trap_is_noticed(runs: dict[str, Future[Done]]) -> None:
    done = runs["trap"].result()
    assert "use-after-poison" in done.stderr, done.stderr[-3000:]
    assert "row_stream.cuh" in done.stderr
