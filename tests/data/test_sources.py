"""The ways to the images, none of them the network."""

import socket
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from idx_files import FILES, write_dataset

from softreg_ext import data
from softreg_ext.data import sources


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cache, no system folder, no torchvision: returns the empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "SYSTEM_DIR", tmp_path / "system")
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    return tmp_path / "cache" / "softreg_ext"


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, constructor: object) -> None:
    module = types.ModuleType("torchvision.datasets")
    module.FashionMNIST = constructor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
def test_data_dir_layouts(tmp_path: Path, zipped: bool, layout: str) -> None:
    write_dataset(tmp_path / layout, zipped=zipped)
    dataset = data.load_dataset(data_dir=tmp_path)
    assert (dataset.name, dataset.is_synthetic) == ("fashion-mnist", False)
    assert dataset.source == str(tmp_path / layout)
    assert torch.equal(dataset.train_images, data.draw_garments(20, 0)[0])
    assert torch.equal(dataset.test_labels, data.draw_garments(10, 1)[1])


def test_data_dir_never_falls_through(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / FILES[1]).unlink()
    (tmp_path / FILES[2]).unlink()
    with pytest.raises(data.DataError) as caught:
        data.load_dataset("auto", tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert f"missing {FILES[1]}, {FILES[2]} " in str(caught.value)
    with pytest.raises(data.DataError, match="nowhere: no such folder"):
        data.load_dataset("auto", tmp_path / "nowhere")


def test_synthetic_on_request() -> None:
    dataset = data.load_dataset("synthetic")
    assert (dataset.name, dataset.is_synthetic) == ("synthetic", True)
    assert dataset.train_images.shape == (12_000, 28, 28)
    assert dataset.test_labels.shape == (2_000,)
    assert not torch.equal(dataset.train_images[:2_000], dataset.test_images)


def test_choices_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data must be one of auto, .*got 'mnist'"):
        data.load_dataset("mnist")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data_dir .* cannot go with data 'synthetic'"):
        data.load_dataset("synthetic", tmp_path)


def test_cache_comes_before_the_system(nowhere: Path) -> None:
    write_dataset(sources.SYSTEM_DIR, zipped=True)
    assert data.load_dataset().source == str(sources.SYSTEM_DIR)
    write_dataset(nowhere / "FashionMNIST" / "raw")
    assert data.load_dataset().source == str(nowhere / "FashionMNIST" / "raw")


def test_damaged_cache_is_passed_over(nowhere: Path) -> None:
    write_dataset(nowhere)
    (nowhere / FILES[0]).write_bytes(b"")
    write_dataset(sources.SYSTEM_DIR)
    assert data.load_dataset("fashion-mnist").source == str(sources.SYSTEM_DIR)


def test_an_unfinished_download_hides_nothing(nowhere: Path) -> None:
    write_dataset(nowhere)
    (nowhere / "FashionMNIST" / "raw").mkdir(parents=True)
    assert data.load_dataset("fashion-mnist").source == str(nowhere)
    (nowhere / FILES[0]).unlink()
    with pytest.raises(data.DataError, match=rf"raw: missing .*; {nowhere}: missing {FILES[0]}"):
        data.load_dataset(data_dir=nowhere)


def test_no_home_directory(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(data.DataError, match=r"cache folder: .*XDG_CACHE_HOME may name a folder"):
        data.load_dataset("fashion-mnist")
    write_dataset(sources.SYSTEM_DIR)
    assert data.load_dataset().source == str(sources.SYSTEM_DIR)
    with pytest.raises(data.DataError, match="~nobody-of-that-name"):
        data.load_dataset(data_dir="~nobody-of-that-name/data")


def test_nothing_found_lists_every_way(nowhere: Path) -> None:
    with pytest.raises(data.DataError) as caught:
        data.load_dataset("fashion-mnist")
    message = str(caught.value)
    for hint in (str(nowhere), str(sources.SYSTEM_DIR), "download: ", "apt install", "--data-dir"):
        assert hint in message


def test_auto_falls_back_loudly(nowhere: Path) -> None:
    with pytest.warns(data.SyntheticDataWarning, match="SYNTHETIC"):
        dataset = data.load_dataset("auto")
    assert dataset.is_synthetic


def test_download_fills_the_cache(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: str, download: bool) -> None:
        assert download and socket.getdefaulttimeout() == sources._SOCKET_TIMEOUT
        write_dataset(Path(root) / "FashionMNIST" / "raw")

    fake_torchvision(monkeypatch, download)
    assert data.load_dataset().source == str(nowhere / "FashionMNIST" / "raw")
    assert socket.getdefaulttimeout() is None


def test_broken_torchvision_is_one_way_less(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(root: str, download: bool) -> None:
        print("Downloading")
        raise RuntimeError("operator torchvision::nms does not exist")

    fake_torchvision(monkeypatch, broken)
    with pytest.raises(data.DataError, match="download: RuntimeError: operator torchvision::nms"):
        data.load_dataset("fashion-mnist")
    captured = capsys.readouterr()
    assert captured.out == "" and "trying a download" in captured.err


def test_silent_server_ends_in_bounded_time(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def connect(root: str, download: bool) -> None:
            with socket.create_connection(server.getsockname()) as connection:
                connection.recv(1)

        fake_torchvision(monkeypatch, connect)
        monkeypatch.setattr(sources, "_SOCKET_TIMEOUT", 0.2)
        start = time.monotonic()
        with pytest.raises(data.DataError, match="TimeoutError"):
            data.load_dataset("fashion-mnist")
        assert time.monotonic() - start < 5
