"""What the benchmarks' command lines have in common."""

import argparse
import math
from pathlib import Path

from surroundings import RESULTS


def parse(
    parser: argparse.ArgumentParser, arguments: list[str] | None, *positive: str
) -> argparse.Namespace:
    """Adds --out, parses, refuses what is not positive of the named ones, and makes the folder.

    A quick run's is not that of the whole ones, which the README names.
    """
    quick = RESULTS / "quick"
    parser.add_argument("--out", type=Path, help=f"folder (default: {RESULTS}, of --quick {quick})")
    given = parser.parse_args(arguments)
    if given.out is None:
        given.out = quick if getattr(given, "quick", False) else RESULTS
    if given.out.exists() and not given.out.is_dir():
        parser.error(f"--out must be a folder, but {given.out} is none")
    for name in positive:
        value = getattr(given, name)
        for number in value if isinstance(value, list) else [value]:
            if not 0 < number < math.inf:
                parser.error(f"--{name} must be positive, but got {number}")
    given.out.mkdir(parents=True, exist_ok=True)
    return given
