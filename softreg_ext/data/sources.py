"""Where the images come from: a folder, the cache, the system, a download, or the drawing board."""

import contextlib
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from .dataset import FashionData
from .idx import DataError, read_split
from .synthetic import draw_garments

DataChoice = Literal["auto", "fashion-mnist", "synthetic"]
DATA_CHOICES: tuple[DataChoice, ...] = ("auto", "fashion-mnist", "synthetic")

SYSTEM_DIR = Path("/usr/share/datasets/fashion-mnist")
SYNTHETIC_TRAIN, SYNTHETIC_TEST = 12_000, 2_000

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_TORCHVISION_LAYOUT = Path("FashionMNIST", "raw")
_SOCKET_TIMEOUT = 10.0


class SyntheticDataWarning(UserWarning):
    """Fashion-MNIST was not found; drawings stand in for it."""


def load_dataset(data: DataChoice = "auto", data_dir: str | Path | None = None) -> FashionData:
    """Loads Fashion-MNIST, or what stands in for it.

    Without `data_dir` these sources are tried in order: the cache folder
    (``$XDG_CACHE_HOME/softreg_ext`` or ``~/.cache/softreg_ext``), the Debian package
    ``dataset-fashion-mnist``, a download through torchvision into the cache folder.

    Args:
        data: ``"fashion-mnist"``; ``"synthetic"`` for drawn garments; ``"auto"`` for
            Fashion-MNIST if one of the sources has it, else drawn garments and a warning.
        data_dir: A folder with the four IDX files, gzipped or not, or with
            ``FashionMNIST/raw/`` in it. No other source is tried then.

    Raises:
        DataError: `data_dir` lacks files or holds damaged ones, or ``"fashion-mnist"`` was asked
            for and no source had it.
        ValueError: `data` is none of the above, or ``"synthetic"`` together with `data_dir`.
    """
    if data not in DATA_CHOICES:
        raise ValueError(f"data must be one of {', '.join(DATA_CHOICES)}, got {data!r}")
    if data == "synthetic":
        if data_dir is not None:
            raise ValueError(f"data_dir {str(data_dir)!r} cannot go with data 'synthetic'")
        return _load_synthetic()
    if data_dir is not None:
        try:
            folder = Path(data_dir).expanduser()
        except RuntimeError as error:  # there is no such user
            raise DataError(f"{data_dir}: {error}") from error
        return _load_folder(folder)
    try:
        return _search()
    except DataError as error:
        if data == "fashion-mnist":
            raise
        warnings.warn(
            f"{error}\nCarrying on with SYNTHETIC garments: the results say nothing about "
            "Fashion-MNIST.",
            SyntheticDataWarning,
            stacklevel=2,
        )
        return _load_synthetic()


def cache_dir() -> Path:
    """The folder that downloads go to.

    Raises:
        DataError: There is no home directory for it.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "softreg_ext"
    except RuntimeError as error:
        raise DataError(f"{error} XDG_CACHE_HOME may name a folder.") from error


def _load_synthetic() -> FashionData:
    return FashionData(
        "synthetic",
        "garments drawn by softreg_ext",
        True,
        *draw_garments(SYNTHETIC_TRAIN, seed=0),
        *draw_garments(SYNTHETIC_TEST, seed=1),
    )


def _search() -> FashionData:
    """Tries every source in turn; the error lists how each one failed."""
    failures = []
    sources: dict[str, Callable[[], FashionData]] = {
        "cache folder": lambda: _load_folder(cache_dir()),
        "system folder": lambda: _load_folder(SYSTEM_DIR),
        "download": lambda: _download(cache_dir()),
    }
    for title, attempt in sources.items():
        try:
            return attempt()
        except (DataError, OSError) as error:
            failures.append(f"  {title}: {error}")
    raise DataError(
        "\n".join(
            (
                "Fashion-MNIST was not found. Tried:",
                *failures,
                "Ways to get it:",
                "  apt install dataset-fashion-mnist (Debian, Ubuntu);",
                "  with torchvision installed and a connection, run again: it is downloaded;",
                f"  put the files {', '.join(_FILES)} (.gz or not) into a folder "
                "and name it with --data-dir.",
            )
        )
    )


def _load_folder(folder: Path) -> FashionData:
    """Reads the four files of `folder`, or of the torchvision layout within it."""
    if not folder.is_dir():
        raise DataError(f"data folder {folder}: no such folder")
    nested = folder / _TORCHVISION_LAYOUT
    lacking = []
    for place in (nested, folder) if nested.is_dir() else (folder,):
        found = [_find_file(place, name) for name in _FILES]
        missing = [name for name, path in zip(_FILES, found, strict=True) if path is None]
        if not missing:
            break
        lacking.append(f"{place}: missing {', '.join(missing)} (.gz or not)")
    else:
        raise DataError("; ".join(lacking))
    train_images, train_labels, test_images, test_labels = filter(None, found)
    return FashionData(
        "fashion-mnist",
        str(place),
        False,
        *read_split(train_images, train_labels),
        *read_split(test_images, test_labels),
    )


def _find_file(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _download(cache: Path) -> FashionData:
    print(f"Fashion-MNIST: trying a download into {cache}", file=sys.stderr)
    # Whatever goes wrong in there, a broken torchvision or a broken network, is a failed way.
    try:
        from torchvision.datasets import FashionMNIST

        with _socket_timeout(_SOCKET_TIMEOUT), contextlib.redirect_stdout(sys.stderr):
            FashionMNIST(root=str(cache), download=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{type(error).__name__}: {reason}") from error
    return _load_folder(cache)


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bounds every wait for the network: torchvision itself would wait without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
