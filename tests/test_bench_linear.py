"""The benchmark of linear_cross_entropy: what it times is checked, and the report says what was."""

import csv
import time
from pathlib import Path

import bench_linear
import measure
import pytest
import torch
from bench_linear import PRODUCTS, Size
from torch import Tensor

import softreg_ext

SMALL, HALF = Size(6, 4, 5), Size(6, 4, 5, torch.bfloat16)


def wrong(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return bench_linear.eager(input, weight, target) * 1.001


def no_number(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    loss = bench_linear.eager(input, weight, target)
    return loss + 0 * (loss - loss.detach()).sqrt()  # its gradient is NaN, and it is not


def with_peer(monkeypatch: pytest.MonkeyPatch, **peers: bench_linear.Loss) -> None:
    ours = {"softreg_ext": softreg_ext.linear_cross_entropy}
    monkeypatch.setattr(bench_linear, "peers", lambda size: {**ours, **peers})
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 1e-5)
    monkeypatch.setattr(bench_linear, "SIZES", (SMALL,))
    monkeypatch.setattr(bench_linear, "BFLOAT16_SIZES", (HALF,))


@pytest.mark.parametrize("dtypes", [["float32"], ["float32", "bfloat16"]], ids=str)
def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtypes: list[str]) -> None:
    with_peer(monkeypatch, eager=bench_linear.eager)
    monkeypatch.setattr(bench_linear, "has_bfloat16", lambda: "bfloat16" in dtypes)
    threads = torch.get_num_threads()
    bench_linear.main(["--seconds", "0.01", "--threads", "1", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    with (tmp_path / "linear.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["dtype"], row["mode"], row["peer"]) for row in rows]
    peers = ["softreg_ext", "eager"]
    expected = [(mode, peer) for mode in bench_linear.MODES for peer in peers]
    expected.append((bench_linear.MODES[-1], PRODUCTS))
    assert found == [(dtype, *cell) for dtype in dtypes for cell in expected]
    assert all(float(row["median_s"]) > 0 and row["torch"] == torch.__version__ for row in rows)
    lines = (tmp_path / "linear.md").read_text().splitlines()
    table = [line.split(" | ") for line in lines if line.startswith("| 6x4x5")]
    assert [tuple(line[1:4]) for line in table] == found
    for line, row in zip(table, rows, strict=True):
        cell = [row["dtype"], row["mode"]]
        ours = next(other for other in rows if [other["dtype"], other["mode"]] == cell)
        assert line[5] == f"{float(row['median_s']) / float(ours['median_s']):.2f}"


def test_ignored_labels() -> None:
    size = Size(1000, 2, 3, ignored=0.5)
    layer = bench_linear.make_layer(size)
    assert 400 < (layer.target == bench_linear.IGNORED).sum() < 600
    assert str(size) == "1000x2x3, 50% ignored"
    picking = bench_linear.peers(size)["eager, of picked rows"]
    torch.testing.assert_close(picking(*layer), bench_linear.eager(*layer))
    assert "eager, of picked rows" not in bench_linear.peers(SMALL)


def test_a_slow_peer_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*layer: Tensor) -> Tensor:
        time.sleep(0.1)
        return bench_linear.eager(*layer)

    with_peer(monkeypatch, slow=slow)
    rows = list(bench_linear.measure(SMALL, 1, 0.05))
    assert [row["peer"] for row in rows] == ["softreg_ext", "softreg_ext", PRODUCTS, "slow"]
    assert rows[-1]["rounds"] == 1
    assert rows[-1]["median_s"] >= 0.1
    assert "| slow |" in bench_linear.report(rows, {})


@pytest.mark.parametrize("peer", [wrong, no_number])
def test_wrong_peers_are_not_timed(
    peer: bench_linear.Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_peer(monkeypatch, wrong=peer)
    with pytest.raises(AssertionError, match="6x4x5: wrong is wrong by"):
        next(bench_linear.measure(SMALL, 1, 0.01))


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_linear.main(["--seconds", "0"])
    assert "--seconds must be positive, but got 0.0" in capsys.readouterr().err
