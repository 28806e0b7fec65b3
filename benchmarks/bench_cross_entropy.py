"""Softmax cross-entropy against PyTorch's, over a grid of sizes, dtypes, options and threads.

    python benchmarks/bench_cross_entropy.py [--device cuda] [--quick] [--out DIR]

Writes cross_entropy.csv, or cross_entropy_gpu.csv, and from it a report and a chart. All peers run
in one process and take turns; what a peer computes is held against float64 before it is timed.
On the CPU the quick grid follows, on each kernel set below the one that this processor has.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import arguments
import gpu_measure
import gpu_report
import report
from cells import Cell, gpu_grid, grid
from measure import measure
from report import read_table, write_table
from surroundings import lesser_kernel_sets, surroundings, why_no_gpu
from tqdm import tqdm


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few cells, two minutes")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="for a mode of a cell (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, os.cpu_count() or 1}),
        help="numbers of threads (default: 1 and all)",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--minutes", type=float, help="with --device cuda: no cell begins later")
    given = arguments.parse(parser, words, "seconds", "threads")
    if given.minutes is not None and (given.device == "cpu" or given.minutes <= 0):
        parser.error(f"--minutes is positive and of --device cuda, but got {given.minutes}")
    if given.device == "cuda" and (missing := why_no_gpu()):
        parser.error(f"--device cuda: {missing}")
    return given


def with_kernels(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The quick grid on another kernel set, of ours and of PyTorch's, in a process of its own."""
    capability = "default" if name == "generic" else name
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--quick", "--out", folder]
        command += ["--seconds", str(given.seconds), "--threads", *map(str, given.threads)]
        subprocess.run(command, env=environment, check=True)
        return read_table(Path(folder, "cross_entropy.csv"))


class Plan(NamedTuple):
    """What a run is of: cells, how one becomes rows, and who reports them."""

    cells: list[Cell]
    rows_of: Callable[[Cell], Iterable[dict[str, Any]]]
    reporter: ModuleType
    table: str


def plan(given: argparse.Namespace) -> Plan:
    if given.device == "cuda":
        rows_of = gpu_measure.within(given.minutes, given.seconds)
        return Plan(list(gpu_grid(given.quick)), rows_of, gpu_report, "cross_entropy_gpu.csv")
    cells = list(grid(given.threads, given.quick))
    return Plan(cells, partial(measure, seconds=given.seconds), report, "cross_entropy.csv")


def main(words: list[str] | None = None) -> None:
    given = parse(words)
    cells, rows_of, reporter, name = plan(given)
    table = given.out / name
    constant = surroundings(given.device)
    # The compiler's cache does not ask for which instruction set a graph was compiled.
    cache = Path(tempfile.gettempdir()) / f"softreg_ext-{constant['kernels']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    rows: list[dict[str, Any]] = []
    progress = tqdm(cells, unit="cell")
    try:
        for cell in progress:
            progress.set_description(str(cell))
            measured = [{**row, **constant} for row in rows_of(cell)]
            rows += measured
            for line in reporter.best_ratios(measured):
                progress.write(line)
            write_table(table, rows)  # after each cell: nothing is lost
        if given.device == "cpu" and not given.quick:
            for kernels in lesser_kernel_sets():
                rows += with_kernels(kernels, given)
                write_table(table, rows)
    finally:
        if rows:
            for path in reporter.write_report(table):
                print(path)
    print(json.dumps(constant))


if __name__ == "__main__":
    main()
