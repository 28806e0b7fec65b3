"""Tables as the benchmarks write them, made by hand."""

from collections.abc import Iterable
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
