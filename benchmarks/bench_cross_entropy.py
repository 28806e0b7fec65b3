"""Softmax cross-entropy against PyTorch's, over a grid of sizes, dtypes, options and threads.

    python benchmarks/bench_cross_entropy.py [--quick] [--out DIR]

Writes cross_entropy.csv, and from it cross_entropy.md and cross_entropy.png. All peers run in one
process and take turns; what a peer computes is held against float64 before it is timed.
"""

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cells import grid
from measure import measure
from report import best_ratios, write_report
from surroundings import RESULTS, surroundings
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
    given = parser.parse_args(arguments)
    if given.seconds <= 0:
        parser.error(f"--seconds must be positive, but got {given.seconds}")
    if min(given.threads) < 1:
        parser.error(f"--threads must be positive, but got {min(given.threads)}")
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    table = given.out / "cross_entropy.csv"
    constant = surroundings()
    # The compiler's cache does not ask for which instruction set a graph was compiled.
    cache = Path(tempfile.gettempdir()) / f"softreg_ext-{constant['kernels']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    rows: list[dict[str, Any]] = []
    cells = list(grid(given.threads, given.quick))
    progress = tqdm(cells, unit="cell")
    try:
        for cell in progress:
            progress.set_description(str(cell))
            measured = [{**row, **constant} for row in measure(cell, given.seconds)]
            rows += measured
            for line in best_ratios(measured):
                progress.write(line)
            with table.open("w", newline="") as file:  # after each cell: nothing is lost
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    finally:
        if rows:
            for path in write_report(table):
                print(path)
    print(json.dumps(constant))


if __name__ == "__main__":
    main()
