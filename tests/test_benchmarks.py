"""The benchmark: what it times is checked, and its report says what the table says."""

import csv
import re
from pathlib import Path
from typing import Any

import bench_cross_entropy
import bench_training
import measure
import pytest
import report
import tables
import torch
import torch.nn.functional as F
from cells import VARIANTS, Cell, grid, make_inputs
from peers import torch_loss

import softreg_ext
from softreg_ext.data import load_dataset, sources

SMALL = Cell((6, 5), "float32", 1)


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 1e-5)
    monkeypatch.setattr(measure, "MOST_ROUNDS", 3)
    monkeypatch.setattr(measure, "LEAST_ROUNDS", 3)


def peers(wrong: Any = torch_loss) -> dict[str, Any]:
    return {"softreg_ext": softreg_ext.cross_entropy, "eager": torch_loss, "compiled": wrong}


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4)])
def test_rows(variant: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "peers_for", lambda cell: peers())
    rows = list(measure.measure(Cell(shape, "float32", 1, variant), 0.01))
    assert {row["mode"] for row in rows} == set(measure.MODES)
    forward = {row["peer"] for row in rows if row["mode"] == "forward"}
    assert forward == {*peers(), "read", "copy"}
    for row in rows:
        assert 0 < row["lower_quartile_s"] <= row["median_s"] <= row["upper_quartile_s"]


def test_wrong_peers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **options: Any) -> torch.Tensor:
        return F.cross_entropy(*args, **options) * 1.001

    monkeypatch.setattr(measure, "peers_for", lambda cell: peers(wrong))
    with pytest.raises(AssertionError, match="compiled is wrong"):
        next(measure.measure(SMALL, 0.01))


def test_peak_counts_what_is_freed_again() -> None:
    size = 64 << 20

    def call() -> None:
        torch.ones(size, dtype=torch.uint8)

    # the system counts pages in batches
    assert 0.9 * size <= measure.peak_bytes(call) < 2 * size


def test_grid() -> None:
    cells = list(grid([1, 2], quick=False))
    assert len(cells) == len(set(cells))
    assert {cell.threads for cell in cells} == {1, 2}
    assert {cell.variant for cell in cells} == set(VARIANTS)
    assert {cell.dtype for cell in cells} == {"float32", "bfloat16", "float64"}
    assert {cell.threads for cell in grid([1, 2], quick=True)} == {2}


def test_inputs_are_the_same_each_time() -> None:
    one, other = make_inputs(SMALL), make_inputs(SMALL)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.target, other.target)


def table(path: Path, *kernels: str) -> Path:
    about = {"size": "6x5", "dtype": "float32", "variant": "plain", "threads": 2}
    here = {"processor": "P", "cores": 2, "kernels": "k", "torch": "t", "python": "p"}
    times = {"softreg_ext": 1e-6, "eager": 5e-6, "compiled": 3e-6}
    here["softreg_ext"] = "1"
    rows = [
        row
        for name in kernels or ["k"]
        for row in tables.rows_of(measure.MODES, times, about, {**here, "kernels": name})
    ]
    report.write_table(path, rows)
    return path


def test_report(tmp_path: Path) -> None:
    written = report.write_report(table(tmp_path / "some.csv"))
    assert [path.name for path in written] == ["some.csv", "some.md", "some.png"]
    text = written[1].read_text()
    assert text.count("| 6x5 | float32 | plain | 2 | 1 | 5 | 3 |") == 3
    assert text.count("| **3.00** | 1e-07, 1e-07 | 0.25 |") == 3  # 3 us over 1 us; 50 over 200
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_report_of_several_kernel_sets(tmp_path: Path) -> None:
    text = report.write_report(table(tmp_path / "some.csv", "new", "old"))[1].read_text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[0] == "## Forward"
    assert headings[3:] == [f"{heading}, old kernels" for heading in headings[:3]]
    assert text.count("| 6x5 |") == 6


def test_another_kernel_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process whose environment asks for it."""
    seen = {}

    def run(command: list[str], env: dict[str, str], check: bool) -> None:
        seen.update(command=command, capability=env["ATEN_CPU_CAPABILITY"], check=check)
        table(Path(command[command.index("--out") + 1], "cross_entropy.csv"), "generic")

    monkeypatch.setattr(bench_cross_entropy.subprocess, "run", run)
    given = bench_cross_entropy.parse(["--threads", "1", "2", "--out", str(tmp_path)])
    rows = bench_cross_entropy.with_kernels("generic", given)
    assert {row["kernels"] for row in rows} == {"generic"}
    assert (seen["capability"], seen["check"]) == ("default", True)
    assert "--quick" in seen["command"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds.*0.0"),
        (["--seconds", "nan"], "--seconds.*nan"),
        (["--threads", "1", "0"], "--threads.*0"),
        (["--out", __file__], f"--out.*{re.escape(__file__)}"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench_cross_entropy.parse(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_a_quick_run_is_not_among_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arguments.RESULTS", tmp_path / "results")
    assert bench_cross_entropy.parse([]).out == tmp_path / "results"
    assert bench_cross_entropy.parse(["--quick"]).out == tmp_path / "results" / "quick"


def test_quick_grid_is_on_most_threads() -> None:
    assert {cell.threads for cell in grid([2, 1], quick=True)} == {2}


def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three loops, one result: only the time may differ."""
    monkeypatch.setattr(sources, "SYNTHETIC_TRAIN", 300)
    monkeypatch.setattr(sources, "SYNTHETIC_TEST", 100)
    dataset = load_dataset("synthetic")
    monkeypatch.setattr(bench_training, "load_dataset", lambda: dataset)
    bench_training.main(["--epochs", "1", "--out", str(tmp_path)])
    with (tmp_path / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["loop"] for row in rows] == list(bench_training.LOOPS)
    losses = [float(row["train_loss"]) for row in rows]
    assert max(losses) - min(losses) < 1e-6
    assert all(float(row["step_us"]) > 0 for row in rows)
