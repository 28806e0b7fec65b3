"""Tables as the benchmarks write them, made by hand."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OURS_PEAK, OTHERS_PEAK = 50 << 20, 200 << 20


def rows_of(
    modes: Iterable[str], seconds: dict[str, float], about: dict[str, Any], here: dict[str, Any]
) -> list[dict[str, Any]]:
    return [
        {
            **about,
            "mode": mode,
            "peer": peer,
            "median_s": median,
            "peak_bytes": OURS_PEAK if peer == "softreg_ext" else OTHERS_PEAK,
            "grad_error": 1e-7,
            **here,
        }
        for mode in modes
        for peer, median in seconds.items()
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path
