"""Small IDX files for the tests of this folder."""

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor

from softreg_ext.data import draw_garments

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(values: Tensor) -> bytes:
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


def write_dataset(folder: Path, *, zipped: bool = False) -> None:
    """Writes 20 training and 10 test images, drawn from the seeds 0 and 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (count, seed) in enumerate(((20, 0), (10, 1))):
        for name, values in zip(FILES[2 * split :], draw_garments(count, seed), strict=False):
            raw = idx_bytes(values)
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / name).write_bytes(raw)
