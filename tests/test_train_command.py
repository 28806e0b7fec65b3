"""``softreg train``, from its arguments to its files."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from softreg_ext import progress, train_command
from softreg_ext.cli import main
from softreg_ext.data import draw_garments, sources
from softreg_ext.runs import RunFolder
from softreg_ext.training import RunningMetrics

FILES = {"metrics.json", "model.pt", "curves.png", "predictions.png", "weights.png"}


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SYNTHETIC_TRAIN", 300)
    monkeypatch.setattr(sources, "SYNTHETIC_TEST", 100)


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    """`softreg train` sets them for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., int]:
    """Runs a small training into ``tmp_path/run``."""

    def run(*options: str) -> int:
        small = ("--data", "synthetic", "--epochs", "2", "--batch-size", "64")
        return main(["train", *small, "--out", str(tmp_path / "run"), *options])

    return run


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of a small run's time."""
    monkeypatch.setattr(train_command, "_draw", lambda *facts: None)


def read_metrics(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return facts


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    steps = iter(range(1, step + 1))

    def on_step(self: progress.Progress, name: str, metrics: RunningMetrics) -> None:
        if next(steps) == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.Progress, "on_step", on_step)


def test_train_leaves_a_complete_run(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--seed", "3", "--lr", "0.05") == 0
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == FILES
    for path in run.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    facts = read_metrics(run)
    assert {key: facts[key] for key in ("dataset", "synthetic", "device", "loss", "loader")} == {
        "dataset": "synthetic",
        "synthetic": True,
        "device": "cpu",
        "loss": "fused",
        "loader": "tensor",
    }
    assert facts["config"] == {
        "epochs": 2,
        "batch_size": 64,
        "lr": 0.05,
        "seed": 3,
        "threads": 1,
        "compare": False,
    }
    assert set(facts["versions"]) == {"softreg_ext", "torch", "python"}
    assert set(facts["hardware"]) == {"processor", "cores", "cpu_kernels", "gpu"}
    assert [set(epoch) for epoch in facts["epochs"]] == [
        {"epoch", "train_loss", "train_acc", "test_acc", "train_seconds"}
    ] * 2
    assert "comparison" not in facts
    out = capsys.readouterr().out
    assert "NOT Fashion-MNIST" in out
    assert "epoch 1/2: train loss" in out and "epoch 2/2: train loss" in out
    assert all(str(run / name) in out for name in FILES)


@pytest.mark.usefixtures("no_pictures")
def test_model_belongs_to_the_last_epoch(train: Callable[..., int], tmp_path: Path) -> None:
    assert train() == 0
    net = RunFolder(tmp_path / "run").load_model()
    images, labels = draw_garments(100, seed=1)
    accuracy = (net(images.div(255)).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(read_metrics(tmp_path / "run")["epochs"][-1]["test_acc"])


def test_a_replaced_run_leaves_no_pictures(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train() == 0
    folder = RunFolder(tmp_path / "run")
    assert folder.held == folder.files

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("softreg_ext.train_command._draw", fail)
    assert train("--overwrite", "--seed", "1") == 1
    assert folder.held == (folder.metrics, folder.model)


@pytest.mark.usefixtures("no_pictures")
def test_results_depend_on_the_seed_only(train: Callable[..., int], tmp_path: Path) -> None:
    losses = []
    for options in (("--loader", "tensor"), ("--loader", "dataloader"), ("--seed", "1")):
        assert train("--overwrite", *options) == 0
        losses.append([e["train_loss"] for e in read_metrics(tmp_path / "run")["epochs"]])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.usefixtures("no_pictures")
def test_threads(train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert train() == 0 and train("--overwrite", "--threads", "3") == 0
    assert asked == [1, 3]
    assert train("--overwrite", "--threads", "4") == 2


@pytest.mark.usefixtures("no_pictures")
def test_compare(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--compare", "--loss", "torch") == 0
    facts = read_metrics(tmp_path / "run")
    comparison = facts["comparison"]
    assert facts["loss"] == "torch" and facts["config"]["compare"]
    assert comparison["histories"]["torch"] == facts["epochs"]
    assert set(comparison["step_seconds"]) == set(comparison["histories"]) == {"fused", "torch"}
    curves = [
        [epoch["train_loss"] for epoch in history] for history in comparison["histories"].values()
    ]
    difference = max(abs(a - b) for a, b in zip(*curves, strict=True))
    assert comparison["max_loss_difference"] == difference < 1e-5
    assert "us a step" in capsys.readouterr().out


def test_interrupt_saves_what_was_finished(
    train: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_at(monkeypatch, step=8)  # an epoch has five steps
    assert train() == 130
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert [epoch["epoch"] for epoch in read_metrics(tmp_path / "run")["epochs"]] == [1]
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_interrupted_comparison_keeps_both_histories(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, step=13)  # in the second epoch of the loss that went second
    assert train("--compare") == 130
    comparison = read_metrics(tmp_path / "run")["comparison"]
    assert [len(history) for history in comparison["histories"].values()] == [1, 1]


def test_interrupt_before_the_first_epoch_ends(
    train: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_at(monkeypatch, step=2)
    assert train() == 130
    assert list((tmp_path / "run").iterdir()) == []
    assert "nothing saved" in capsys.readouterr().err


def test_control_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "softreg_ext", "train", "--data", "synthetic"]
    with subprocess.Popen(
        [*command, "--epochs", "1000000", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors == "softreg: interrupted: the epochs above are saved\n"
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert len(read_metrics(tmp_path)["epochs"]) >= 2


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.usefixtures("no_pictures")
def test_diverging_is_an_error(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert train("--overwrite", "--lr", "1e38") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("softreg: error: train loss became ") and "--lr than 1e+38" in errors
    assert contents(tmp_path / "run") == before, "of the epochs that came to something"


@pytest.mark.usefixtures("no_pictures")
def test_another_run_is_left_alone(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("not a run's")
    assert train() == 0
    before = contents(run)
    capsys.readouterr()
    assert train("--seed", "1") == 2
    wanted = f"argument --out: {str(run)!r} already holds metrics.json from another run; pass --"
    assert wanted in capsys.readouterr().err
    assert contents(run) == before
    assert train("--overwrite", "--seed", "1") == 0
    after = contents(run)
    assert after["model.pt"] != before["model.pt"] and after["notes.txt"] == before["notes.txt"]


def test_unwritable_folder_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(train_command, "train_in_turns", None)
    out = str(tmp_path / "file" / "run")
    assert main(["train", "--data", "synthetic", "--out", out]) == 1
    assert f"softreg: error: run folder {out}: cannot be written" in capsys.readouterr().err


def test_bad_data_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "--data-dir", str(tmp_path), "--out", str(out)]) == 1
    errors = capsys.readouterr().err
    assert f"softreg: error: {tmp_path}: missing train-images-idx3-ubyte" in errors
    assert not out.exists()


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("no_pictures")
def test_fallback_to_synthetic_is_loud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "SYSTEM_DIR", tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--epochs", "1"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert read_metrics(run)["synthetic"] is True
    captured = capsys.readouterr()
    assert "NOT Fashion-MNIST" in captured.out
    assert "softreg: warning: Fashion-MNIST was not found" in captured.err
    assert "SYNTHETIC" in captured.err
