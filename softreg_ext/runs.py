"""The run folder: what a training run leaves behind, and how to get it back."""

import json
import math
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__
from .model import SoftmaxRegression


class RunError(Exception):
    """A run folder that cannot be written, or that does not hold what it should."""


class RunFolder:
    """A folder with ``metrics.json``, ``model.pt`` and the pictures of one run.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics = self.path / "metrics.json"
        self.model = self.path / "model.pt"
        self.curves = self.path / "curves.png"
        self.predictions = self.path / "predictions.png"
        self.weights = self.path / "weights.png"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of a complete run."""
        return self.metrics, self.model, *self.pictures

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Those of its files that are drawn at the end."""
        return self.curves, self.predictions, self.weights

    @property
    def held(self) -> tuple[Path, ...]:
        """Those of them that are there."""
        return tuple(filter(Path.exists, self.files))

    @classmethod
    def create(cls, path: str | Path) -> "RunFolder":
        """Makes the folder, or takes an existing one, and tries whether it can be written.

        Raises:
            RunError: It cannot.
        """
        folder = cls(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder.path):
                pass
            for path in folder.held:
                with path.open("ab"):
                    pass
        except OSError as error:
            place = error.filename if error.filename is not None else folder.path
            raise RunError(
                f"run folder {folder.path}: cannot be written: {place}: {error.strerror}"
            ) from error
        return folder

    def save_model(self, net: nn.Module) -> None:
        """Writes ``model.pt``: a state dict of CPU tensors.

        Raises:
            RunError: It cannot be written; what was there before is left.
        """
        state = {name: value.cpu() for name, value in net.state_dict().items()}
        with _replacing(self.model) as path:
            torch.save(state, path)

    def save_metrics(self, facts: Mapping[str, Any]) -> None:
        """Writes ``metrics.json``; NaN and infinities become null.

        Raises:
            RunError: It cannot be written; what was there before is left.
        """
        text = json.dumps(_json_safe(facts), indent=2, allow_nan=False)
        with _replacing(self.metrics) as path:
            path.write_text(text + "\n", encoding="utf-8")

    def remove_pictures(self) -> None:
        """Of a run that is being replaced: they would belong to none of the two.

        Raises:
            RunError: One cannot be removed.
        """
        try:
            for picture in self.pictures:
                picture.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{picture}: cannot be removed: {error.strerror}") from error

    def load_metrics(self) -> dict[str, Any]:
        """Reads ``metrics.json``.

        Raises:
            RunError: It is missing or damaged.
        """
        self._require(self.metrics)
        try:
            facts = json.loads(self.metrics.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.metrics}: cannot be read: {error}") from error
        if not isinstance(facts, dict):
            raise RunError(f"{self.metrics}: expected an object, found {type(facts).__name__}")
        return facts

    def load_model(self) -> SoftmaxRegression:
        """Reads ``model.pt`` into a model on the CPU, ready to predict.

        Raises:
            RunError: It is missing, damaged or of another model.
        """
        self._require(self.model)
        net = SoftmaxRegression()
        # torch.load answers damage with whatever exception the damage leads to.
        try:
            net.load_state_dict(torch.load(self.model, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, EOFError) as error:
            raise RunError(f"{self.model}: cannot be read: not what torch.save writes") from error
        except Exception as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{self.model}: cannot be read: {reason}") from error
        return net.eval()

    def _require(self, path: Path) -> None:
        if not self.path.is_dir():
            raise RunError(f"run folder {self.path}: no such folder")
        if not path.is_file():
            raise RunError(f"run folder {self.path}: holds no {path.name}")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when it is whole.

    Raises:
        RunError: It cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # the latter is what torch.save has for a full disk
        raise RunError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def make_fresh() -> Path:
    """Makes ``runs/<time>``, or the like, a folder that did not exist.

    Where it cannot be made, `RunFolder.create` of it says why.
    """
    base = Path("runs", time.strftime("%Y%m%d-%H%M%S"))
    for path in chain([base], (base.with_name(f"{base.name}-{n}") for n in count(2))):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:  # one of the same second
            continue
        except OSError:
            break
    return path


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "softreg_ext": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _json_safe(value: Any) -> Any:
    """The same with None for NaN and infinities, which JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    return value
