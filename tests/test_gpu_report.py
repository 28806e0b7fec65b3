"""The report of a GPU says what the table says."""

import csv
from pathlib import Path
from types import ModuleType

import gpu_measure
import gpu_report
import pytest
import report
import tables
from cells import Cell

HERE = {"gpu": "G", "torch": "t", "python": "p", "softreg_ext": "1"}


def table(path: Path) -> Path:
    about = {"size": "8x5", "dtype": "float32", "variant": "plain", "threads": 1}
    times = {"softreg_ext": 1e-6, "eager": 5e-6, "compiled": 3e-6, "read": 0.5e-6, "copy": 1e-6}
    rows = tables.rows_of(gpu_measure.MODES, times, about, {"note": "", **HERE})
    for row in rows:
        row["fewest_bytes"] = 4000 if row["peer"] == "copy" else 3000
    note = gpu_measure.note(Cell((6, 5), "float32", 1), "quack-kernels", "not there")
    rows.append({**{name: note.get(name) for name in rows[0]}, **HERE})
    report.write_table(path, rows)
    return path


def test_report(tmp_path: Path) -> None:
    written = gpu_report.write_report(table(tmp_path / "some.csv"))
    assert [path.name for path in written] == ["some.csv", "some.md", "some.png"]
    text = written[1].read_text()
    # 3000 bytes in 1 us; 4000 in 1 us
    assert text.count("| 8x5 | float32 | plain | 1 | 3 | 75% | 5 | 3 |") == 3
    assert text.count("| **3.00** | 1e-07, 1e-07 | 0.25 |") == 3
    assert "- quack-kernels, 6x5 float32 plain: not there" in text
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_lines_for_the_screen(tmp_path: Path) -> None:
    with table(tmp_path / "some.csv").open() as file:
        lines = list(gpu_report.best_ratios(csv.DictReader(file)))
    assert len(lines) == 3
    assert "3 GB/s   75% of a copy   3.00x the best peer" in lines[0]


def test_short_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_report.main([str(table(tmp_path / "some.csv")), "--short"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert not (tmp_path / "some.md").exists()
    assert lines[1].split() == ["8x5", "float32", "75%", "75%", "3.00x"]


@pytest.mark.parametrize("program", [report, gpu_report])
def test_no_table_is_named(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main([])
    assert "the following arguments are required: TABLE.csv" in capsys.readouterr().err
