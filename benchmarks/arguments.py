"""What the benchmarks' command lines have in common."""

import argparse
from pathlib import Path

from surroundings import RESULTS


def parse(
    parser: argparse.ArgumentParser, arguments: list[str] | None, *positive: str
) -> argparse.Namespace:
    """Adds --out, parses, refuses what is not positive of the named ones, and makes the folder."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)
    for name in positive:
        value = getattr(given, name)
        least = min(value) if isinstance(value, list) else value
        if least <= 0:
            parser.error(f"--{name} must be positive, but got {least}")
    given.out.mkdir(parents=True, exist_ok=True)
    return given
