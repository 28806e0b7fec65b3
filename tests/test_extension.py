"""Which build of the extension is loaded, and what is said when none fits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softreg_ext import _extension
from softreg_ext._extension import Build, find_build


def fake_build(
    folder: Path, torch_version: str, cuda: str | None = None, built: float = 0.0
) -> Path:
    folder.mkdir(parents=True)
    info = {
        **json.loads((_extension.BUILD.folder / "_build_info.json").read_text()),
        "torch": torch_version,
        "cuda": cuda,
        "library": "_C.so",
        "built": built,
    }
    (folder / "_build_info.json").write_text(json.dumps(info))
    (folder / "_C.so").touch()
    return folder


def test_this_build_fits() -> None:
    assert _extension.BUILD.mismatch(torch.__version__, torch.version.cuda) is None


def test_other_patch_release_fits(tmp_path: Path) -> None:
    build = Build.read(fake_build(tmp_path / "a", "2.15.0+cu132", "13.2"))
    assert build.mismatch("2.15.1+cu130", "13.0") is None


@pytest.mark.parametrize(
    ("torch_version", "cuda", "words"),
    [
        ("2.14.1+cu132", "13.2", "built for torch 2.15.0+cu132, but torch 2.14.1+cu132 is"),
        ("2.15.0+cu126", "12.6", "built for CUDA 13.2, but torch 2.15.0+cu126 has CUDA 12.6"),
        ("2.15.0+cpu", None, "built for CUDA 13.2, but torch 2.15.0+cpu has no CUDA"),
    ],
)
def test_misfit_names_both_versions_and_the_mending_command(
    tmp_path: Path, torch_version: str, cuda: str | None, words: str
) -> None:
    folder = fake_build(tmp_path / "a", "2.15.0+cu132", "13.2")
    with pytest.raises(ImportError) as error:
        find_build([folder], torch_version, cuda)
    assert words in str(error.value)
    assert _extension.REBUILD in str(error.value)


@pytest.mark.parametrize("text", ["{", "{}", '{"of": "another version"}'])
def test_what_another_version_says_of_itself_is_passed_over(tmp_path: Path, text: str) -> None:
    other, fitting = (fake_build(tmp_path / name, "2.15.0+cpu") for name in ("other", "fitting"))
    (other / "_build_info.json").write_text(text)
    assert find_build([other, fitting], "2.15.0+cpu", None).folder == fitting
    with pytest.raises(ImportError, match="another version's _build_info"):
        find_build([other], "2.15.0+cpu", None)


def test_second_copy_on_the_path_is_found(tmp_path: Path) -> None:
    source, stale = tmp_path / "source", fake_build(tmp_path / "stale", "2.13.0+cpu")
    installed = fake_build(tmp_path / "installed", "2.15.0+cpu")
    source.mkdir()
    assert find_build([source, stale, installed], "2.15.0", None).folder == installed


def test_newest_of_two_that_fit_is_taken(tmp_path: Path) -> None:
    old = fake_build(tmp_path / "old", "2.15.0+cpu", built=1.0)
    new = fake_build(tmp_path / "new", "2.15.0+cpu", built=2.0)
    assert find_build([old, new], "2.15.0", None).folder == new


def test_another_python_does_not_fit(tmp_path: Path) -> None:
    info = fake_build(tmp_path / "a", "2.15.0") / "_build_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "python": "3.9.1"}))
    with pytest.raises(ImportError, match=r"built for Python 3\.9\.1, but this is"):
        find_build([tmp_path / "a"], "2.15.0", None)


def test_never_built(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="has not been built"):
        find_build([tmp_path], "2.15.0", None)


def test_import_after_an_upgrade_of_torch() -> None:
    """The whole package beside another torch: an ImportError, no undefined symbol."""
    script = "import torch; torch.__version__ = '99.0.0'; import softreg_ext"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 1
    assert f"built for torch {torch.__version__}, but torch 99.0.0 is installed" in run.stderr
    assert run.stderr.strip().splitlines()[-1].strip() == _extension.REBUILD
