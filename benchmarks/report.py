"""The Markdown report and the chart from the CSV alone: python benchmarks/report.py TABLE.csv"""

import argparse
import csv
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

OURS = "softreg_ext"
BASELINES = ("eager", "compiled")
Row = dict[str, Any]


def by_cell(rows: Iterable[Row]) -> Iterator[tuple[tuple[Any, ...], dict[str, Row]]]:
    """Pairs of (size, dtype, variant, threads, mode) and the rows of its peers."""

    def cell(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("size", "dtype", "variant", "threads", "mode"))

    for key, group in groupby(rows, cell):
        yield key, {row["peer"]: row for row in group}


def ratio(peers: dict[str, Row]) -> float:
    """How many times as fast as the better of eager and compiled."""
    best = min(float(peers[name]["median_s"]) for name in BASELINES)
    return best / float(peers[OURS]["median_s"])


def microseconds(row: Row | None) -> str:
    return f"{float(row['median_s']) * 1e6:,.0f}" if row else ""


def best_ratios(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each cell and mode, for the screen."""
    for key, peers in by_cell(rows):
        size, dtype, variant, threads, mode = key
        yield (
            f"{size:>14} {dtype:8} {variant:15} {threads} threads  {mode:18} "
            f"{microseconds(peers[OURS]):>10} us {ratio(peers):6.2f}x"
        )


def memory(peers: dict[str, Row]) -> str:
    """Ours as a part of eager's, where that is more than what the process grows by anyway."""
    ours, eager = (peers[name]["peak_bytes"] for name in (OURS, "eager"))
    return f"{float(ours) / float(eager):.2f}" if eager and float(eager) >= 4 << 20 else ""


def markdown(rows: list[Row]) -> Iterator[str]:
    first = rows[0]
    yield "# Softmax cross-entropy on the CPU\n"
    yield (
        f"{first['processor']}, {first['cores']} cores, {first['kernels']} kernels, "
        f"torch {first['torch']}, Python {first['python']}, softreg_ext {first['softreg_ext']}. "
        "Microseconds a call, medians, all peers in one process and in turns. "
        "The ratio is to the better of eager and compiled; the error is the largest of the "
        "gradient's, as a part of its largest value, against float64; memory is the growth of the "
        "process during a call for which nothing was kept, ours as a part of eager's. `read` and "
        "`copy` are of the logits, by PyTorch. A forward pass that is recorded computes the "
        "gradient too where a backward pass is expected: in forward + backward, not where none "
        "ever comes. Written by `benchmarks/bench_cross_entropy.py`.\n"
    )
    for kernels in dict.fromkeys(row["kernels"] for row in rows):
        of_set = "" if kernels == first["kernels"] else f", {kernels} kernels"
        yield from tables([row for row in rows if row["kernels"] == kernels], of_set)


def tables(rows: list[Row], of_set: str) -> Iterator[str]:
    """One for each mode; the kernel set behind it, where it is not the first, is in its title."""
    cells = list(by_cell(rows))
    for mode in dict.fromkeys(key[4] for key, _ in cells):
        yield f"## {mode[0].upper()}{mode[1:]}{of_set}\n"
        yield (
            "| logits | dtype | variant | threads | ours | eager | compiled | log_softmax + gather "
            "| read | copy | ratio | error, eager's | memory |"
        )
        yield "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        for key, peers in cells:
            if key[4] != mode:
                continue
            names = (OURS, *BASELINES, "log_softmax + gather", "read", "copy")
            times = " | ".join(microseconds(peers.get(name)) for name in names)
            wrong = ", ".join(f"{float(peers[name]['grad_error']):.0e}" for name in (OURS, "eager"))
            yield (
                f"| {' | '.join(map(str, key[:4]))} | {times} | **{ratio(peers):.2f}** "
                f"| {wrong} | {memory(peers)} |"
            )
        yield ""


def chart(rows: list[Row], path: Path) -> None:
    """Bars of the ratio: without options, on the most threads, by size and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["kernels"] == rows[0]["kernels"]]
    threads = max(int(row["threads"]) for row in rows)
    modes = ("forward", "forward + backward")
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, mode in zip(axes, modes, strict=True):
        bars: dict[str, dict[str, float]] = {}
        for key, peers in by_cell(rows):
            size, dtype, variant, count, of_mode = key
            if (variant, int(count), of_mode) == ("plain", threads, mode):
                bars.setdefault(dtype, {})[size] = ratio(peers)
        sizes = list(dict.fromkeys(size for of_dtype in bars.values() for size in of_dtype))
        width = 0.8 / max(1, len(bars))
        for i, (dtype, of_dtype) in enumerate(bars.items()):
            places = [sizes.index(size) + (i - (len(bars) - 1) / 2) * width for size in of_dtype]
            axis.bar(places, list(of_dtype.values()), width, label=dtype)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(sizes)), sizes, rotation=45, ha="right")
        axis.set_title(f"{mode}, {threads} threads")
    axes[0].set_ylabel("times as fast as the better of\neager and compiled")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def read_table(table: Path) -> list[Row]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(table: Path, rows: list[Row]) -> None:
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_report(
    table: Path, markdown: Any = markdown, chart: Any = chart, alt: str = "Ratios"
) -> list[Path]:
    """The table's Markdown and chart, beside it.

    Returns:
        What was written, the table first.
    """
    rows = read_table(table)
    text, picture = table.with_suffix(".md"), table.with_suffix(".png")
    lines = [*markdown(rows), f"![{alt}]({picture.name})", ""]
    text.write_text("\n".join(lines))
    chart(rows, picture)
    return [table, text, picture]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, metavar="TABLE.csv")
    print(*write_report(parser.parse_args(arguments).table), sep="\n")


if __name__ == "__main__":
    main()
