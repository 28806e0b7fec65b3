"""The benchmark of classes that are shared out: what it writes, and that it looks first."""

import csv
import subprocess
import sys
from pathlib import Path

import bench_sharded
import pytest
import torch
from bench_sharded import PEERS
from surroundings import RESULTS


def test_report(tmp_path: Path) -> None:
    script = RESULTS.parent / "bench_sharded.py"
    command = [sys.executable, str(script), "--quick", "--rounds", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "sharded.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["peer"] for row in rows] == list(PEERS)
    assert all(float(row["median_s"]) > 0 and row["torch"] == torch.__version__ for row in rows)
    assert all(0 < float(row["largest_error"]) < 1e-5 for row in rows)
    assert all(
        float(row["lower_quartile_s"]) <= float(row["median_s"]) <= float(row["upper_quartile_s"])
        for row in rows
    )
    lines = (tmp_path / "sharded.md").read_text().splitlines()
    table = [line.split(" | ") for line in lines if line.startswith("| 64x1000")]
    for line, row in zip(table, rows, strict=True):
        assert line[3] == row["peer"]
        assert line[5] == f"{float(row['median_s']) / float(rows[0]['median_s']):.2f}"


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_sharded.main(["--rounds", "0"])
    assert "--rounds must be positive, but got 0" in capsys.readouterr().err
