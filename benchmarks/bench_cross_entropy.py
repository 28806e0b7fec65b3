"""Softmax cross-entropy against PyTorch's, over a grid of sizes, dtypes, options and threads.

    python benchmarks/bench_cross_entropy.py [--device cuda] [--quick] [--out DIR]

Writes cross_entropy.csv, or cross_entropy_gpu.csv, and from it a report and a chart. All peers run
in one process and take turns; what a peer computes is held against float64 before it is timed.
"""

import argparse
import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import gpu_measure
import gpu_report
import report
from cells import Cell, gpu_grid, grid
from measure import measure
from surroundings import RESULTS, surroundings, why_no_gpu
from tqdm import tqdm


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few cells, two minutes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
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
    given = parser.parse_args(arguments)
    if given.seconds <= 0:
        parser.error(f"--seconds must be positive, but got {given.seconds}")
    if min(given.threads) < 1:
        parser.error(f"--threads must be positive, but got {min(given.threads)}")
    if given.minutes is not None and (given.device == "cpu" or given.minutes <= 0):
        parser.error(f"--minutes is positive and of --device cuda, but got {given.minutes}")
    if given.device == "cuda" and (missing := why_no_gpu()):
        parser.error(f"--device cuda: {missing}")
    return given


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


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
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
            with table.open("w", newline="") as file:  # after each cell: nothing is lost
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    finally:
        if rows:
            for path in reporter.write_report(table):
                print(path)
    print(json.dumps(constant))


if __name__ == "__main__":
    main()
