"""The report of a GPU, from the CSV alone: python benchmarks/gpu_report.py TABLE.csv [--short]"""

import argparse
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import report
from report import OURS, Row, by_cell, memory, microseconds

YARDSTICKS = ("read", "copy")
PEERS = ("eager", "compiled", "compiled, dynamic", "liger-kernel", "quack-kernels", "flash-attn")
CHARTED_MODES = ("forward", "backward")
CHARTED_LOGITS = 1 << 23  # below, a launch is what takes the time


def bandwidth(row: Row) -> float:
    """Bytes a second, of the fewest that the mode needs."""
    return float(row["fewest_bytes"]) / float(row["median_s"])


def of_copy(peers: dict[str, Row], name: str = OURS) -> float:
    """The bandwidth as a part of a copy's, measured in turns with it."""
    return bandwidth(peers[name]) / bandwidth(peers["copy"])


def ratio(peers: dict[str, Row]) -> float:
    """How many times as fast as the best peer."""
    times = [float(peers[name]["median_s"]) for name in PEERS if name in peers]
    return min(times) / float(peers[OURS]["median_s"]) if times else float("nan")


def measured(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["median_s"]]


def best_ratios(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each cell and mode, for the screen."""
    for (size, dtype, variant, _, mode), peers in by_cell(measured(rows)):
        yield (
            f"{size:>14} {dtype:8} {variant:15} {mode:30} {microseconds(peers[OURS]):>10} us "
            f"{bandwidth(peers[OURS]) / 1e9:6,.0f} GB/s {of_copy(peers):5.0%} of a copy "
            f"{ratio(peers):6.2f}x the best peer"
        )


def short(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each cell without options: parts of a copy's bandwidth, and the ratio."""
    cells: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for (size, dtype, variant, _, mode), peers in by_cell(measured(rows)):
        if variant == "plain":
            cells.setdefault((size, dtype), {})[mode] = peers
    yield f"{'logits':>14} {'dtype':8} {'forward':>8} {'backward':>8}   both, to the best peer"
    for (size, dtype), modes in cells.items():
        parts = " ".join(f"{of_copy(modes[mode]):8.0%}" for mode in CHARTED_MODES)
        yield f"{size:>14} {dtype:8} {parts} {ratio(modes['forward + backward']):8.2f}x"


def error(peers: dict[str, Row], name: str) -> str:
    found = peers[name]["grad_error"] if name in peers else ""
    return f"{float(found):.0e}" if found else ""


def table_of_mode(rows: list[Row], mode: str) -> Iterator[str]:
    names = [*PEERS, *YARDSTICKS]
    columns = ["logits", "dtype", "variant", "ours", "GB/s", "of copy", *names, "ratio"]
    yield f"| {' | '.join([*columns, 'error', 'memory'])} |"
    yield f"|---|---|---{'|--:' * (len(columns) - 1)}|"
    for (size, dtype, variant, _, of_mode), peers in by_cell(rows):
        if of_mode == mode:
            cells = [
                *(size, dtype, variant, microseconds(peers[OURS])),
                *(f"{bandwidth(peers[OURS]) / 1e9:,.0f}", f"{of_copy(peers):.0%}"),
                *(microseconds(peers.get(name)) for name in names),
                *(f"**{ratio(peers):.2f}**", f"{error(peers, OURS)}, {error(peers, 'eager')}"),
                memory(peers) if "eager" in peers else "",
            ]
            yield f"| {' | '.join(cells)} |"


def left_out(rows: Iterable[Row]) -> Iterator[str]:
    """What was not measured, and why: a line for each reason."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"]:
            where = f"{row['size']} {row['dtype']} {row['variant']}"
            cells.setdefault((row["peer"], row["note"]), []).append(where)
    for (peer, why), where in cells.items():
        more = f" and {len(where) - 3} more" if len(where) > 3 else ""
        yield f"- {peer}, {', '.join(where[:3])}{more}: {why}"


def markdown(rows: list[Row]) -> Iterator[str]:
    first, timed = rows[0], measured(rows)
    yield "# Softmax cross-entropy on a GPU\n"
    yield (
        f"{first['gpu']}, torch {first['torch']}, Python {first['python']}, softreg_ext "
        f"{first['softreg_ext']}. Microseconds a call by the device's events, medians, nothing of "
        "the inputs in the L2, all peers in one process and in turns. GB/s are of the fewest bytes "
        "that a mode needs (forward one read of the logits, backward and both together one read "
        "and one write), the same for every peer; `of copy` is their part of what `copy`, of the "
        "logits by PyTorch, moves in the same turns. The ratio is to the best peer. liger-kernel "
        "computes the gradient in the forward pass, in the place of the logits, which the others "
        "keep; ours computes it there too from 32 MB of logits on, but where `backward` is timed. "
        "The error is the largest of the gradient's, as a part of its largest value, against "
        "float64, ours and eager's; memory is what a call allocates at most, ours as a part of "
        "eager's. "
        "Written by `benchmarks/bench_cross_entropy.py --device cuda`.\n"
    )
    for mode in dict.fromkeys(row["mode"] for row in timed):
        yield f"## {mode[0].upper()}{mode[1:]}\n"
        yield from table_of_mode(timed, mode)
        yield ""
    if notes := list(left_out(rows)):
        yield from ("## Not measured\n", *notes, "")


def chart(rows: list[Row], path: Path) -> None:
    """The part of a copy's bandwidth by classes, without options, of sizes that fill a GPU."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows if row["dtype"] != "float64"))
    figure, axes = pyplot.subplots(
        *(len(dtypes), len(CHARTED_MODES)),
        figsize=(11, 4 * len(dtypes)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for across, dtype in zip(axes, dtypes, strict=True):
        for axis, mode in zip(across, CHARTED_MODES, strict=True):
            lines: dict[str, list[tuple[int, float]]] = {}
            for (size, of_dtype, variant, _, of_mode), peers in by_cell(measured(rows)):
                shape = [int(n) for n in size.split("x")]
                charted = len(shape) == 2 and math.prod(shape) >= CHARTED_LOGITS
                if charted and (of_dtype, variant, of_mode) == (dtype, "plain", mode):
                    for name in (OURS, *PEERS):
                        if name in peers:
                            lines.setdefault(name, []).append((shape[1], of_copy(peers, name)))
            for name, points in lines.items():
                width = 2.5 if name == OURS else 1
                axis.plot(*zip(*sorted(points), strict=True), ".-", linewidth=width, label=name)
            axis.axhline(1, color="black", linewidth=0.8)
            axis.set_xscale("log", base=2)
            axis.set_title(f"{mode}, {dtype}")
            axis.set_xlabel("classes")
        across[0].set_ylabel("part of a copy's bandwidth")
    axes[0][0].set_ylim(bottom=0)
    if axes[0][0].lines[1:]:
        axes[0][0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


write_report = partial(report.write_report, markdown=markdown, chart=chart, alt="Bandwidths")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, metavar="TABLE.csv")
    parser.add_argument("--short", action="store_true", help="print the short table, write nothing")
    given = parser.parse_args(arguments)
    print(
        *(short(report.read_table(given.table)) if given.short else write_report(given.table)),
        sep="\n",
    )


if __name__ == "__main__":
    main()
