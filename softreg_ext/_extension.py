"""Finds and loads the compiled extension, `softreg_ext._C`.

Beside the .so lies `_build_info.json`, which is read first: an extension built for another torch
would otherwise end in an undefined symbol. In a source tree the .so is usually not beside this
file but in the installed copy of the package, so every copy on the path is considered, and of those
that fit the newest is taken.
"""

import importlib.util
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


@dataclass(frozen=True)
class Build:
    """What `_build_info.json` says of one build of the extension."""

    folder: Path
    version: str
    library: str
    built: float
    python: str
    torch: str
    cuda: str | None
    cuda_reason: str
    cuda_archs: str | None
    cxx_flags: list[str]
    kernel_flags: dict[str, list[str]]

    @classmethod
    def read(cls, folder: Path) -> "Build":
        return cls(folder, **json.loads((folder / "_build_info.json").read_text()))

    def mismatch(self, torch_version: str, torch_cuda: str | None) -> str | None:
        """Why this build cannot be loaded beside that torch; None if it can."""
        if _minor(self.python) != _minor(platform.python_version()):
            return f"built for Python {self.python}, but this is {platform.python_version()}"
        if _minor(self.torch) != _minor(torch_version):
            return f"built for torch {self.torch}, but torch {torch_version} is installed"
        if self.cuda and _major(self.cuda) != _major(torch_cuda):
            have = f"CUDA {torch_cuda}" if torch_cuda else "no CUDA"
            return f"built for CUDA {self.cuda}, but torch {torch_version} has {have}"
        if not (self.folder / self.library).exists():
            return f"{self.folder / self.library} is missing"
        return None


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


def _major(cuda: str | None) -> str | None:
    return cuda.split(".")[0] if cuda else None


def find_build(folders: list[Path], torch_version: str, torch_cuda: str | None) -> Build:
    """The newest build in `folders` that fits.

    Raises:
        ImportError: there is none; says what each build was made for and how to mend it.
    """
    fitting, misfits = [], []
    for folder in folders:
        if not (folder / "_build_info.json").exists():
            continue
        try:
            build = Build.read(folder)
            mismatch = build.mismatch(torch_version, torch_cuda)
        except (TypeError, ValueError) as error:
            mismatch = f"another version's _build_info.json: {error}"
        if mismatch is None:
            fitting.append(build)
        else:
            misfits.append(f"softreg_ext in {folder} was not loaded: {mismatch}.")
    if fitting:
        return max(fitting, key=lambda build: build.built)
    raise ImportError(
        "\n".join(misfits or ["softreg_ext has not been built for this Python environment."])
        + f"\nBuild it for this torch, in the source folder of softreg_ext:\n  {REBUILD}"
    )


def _load(build: Build) -> ModuleType:
    name = f"{__package__}._C"
    spec = importlib.util.spec_from_file_location(name, build.folder / build.library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_HERE = Path(__file__).resolve().parent
BUILD = find_build(
    [_HERE, *(Path(entry or ".").resolve() / "softreg_ext" for entry in sys.path)],
    torch.__version__,
    torch.version.cuda,
)
_C = _load(BUILD)
