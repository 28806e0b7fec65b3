"""The run folder."""

import json
from pathlib import Path

import pytest
import torch

from softreg_ext import runs
from softreg_ext.model import SoftmaxRegression
from softreg_ext.runs import RunError, RunFolder


def test_model_round_trip(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "b")
    net = SoftmaxRegression()
    folder.save_model(net)
    state = torch.load(folder.model, weights_only=True)
    assert set(state) == {"1.weight", "1.bias"}
    loaded = folder.load_model()
    assert not loaded.training
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(images), net(images))


def test_metrics_round_trip(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    facts = {"dataset": "synthetic", "epochs": [{"epoch": 1, "train_loss": 0.5}]}
    folder.save_metrics(facts)
    assert folder.load_metrics() == facts


def test_metrics_stay_valid_json(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.save_metrics({"loss": float("nan"), "epochs": [{"x": float("inf")}], "n": 1})
    assert json.loads(folder.metrics.read_text()) == {"loss": None, "epochs": [{"x": None}], "n": 1}


def test_writability_is_checked_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=f"run folder {path}: cannot be written"):
            RunFolder.create(path)


def test_creating_leaves_nothing_behind(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone: no such folder"):
        RunFolder(tmp_path / "gone").load_model()
    with pytest.raises(RunError, match=r"holds no model\.pt"):
        RunFolder(tmp_path).load_model()
    with pytest.raises(RunError, match=r"holds no metrics\.json"):
        RunFolder(tmp_path).load_metrics()


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json: cannot be read"):
        folder.load_metrics()
    folder.metrics.write_text("[]")
    with pytest.raises(RunError, match=r"metrics\.json: expected an object, found list"):
        folder.load_metrics()
    for damaged in (b"no model", b""):
        folder.model.write_bytes(damaged)
        with pytest.raises(RunError, match=r"model\.pt: cannot be read: not what torch\.save"):
            folder.load_model()
    torch.save(SoftmaxRegression(4, 3).state_dict(), folder.model)
    with pytest.raises(RunError, match=r"model\.pt: cannot be read.*size mismatch"):
        folder.load_model()


def test_fresh_paths_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda form: "now")
    paths = [runs.make_fresh() for _ in range(3)]
    assert paths == [Path("runs/now"), Path("runs/now-2"), Path("runs/now-3")]
    assert all(path.is_dir() for path in paths)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "runs/now")
    Path("runs").touch()
    with pytest.raises(RunError, match="run folder runs/now: cannot be written"):
        RunFolder.create(runs.make_fresh())


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path)
    folder.save_model(SoftmaxRegression())
    folder.save_metrics({"epochs": 1})
    before = folder.model.read_bytes()

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise RuntimeError("unexpected pos 768 vs 662")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"model\.pt: cannot be written: unexpected pos"):
        folder.save_model(SoftmaxRegression())
    assert folder.model.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [folder.metrics, folder.model]


def test_versions() -> None:
    assert runs.versions()["torch"] == torch.__version__
