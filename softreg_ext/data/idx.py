"""IDX, the file format of MNIST and Fashion-MNIST.

A header (two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
32-bit integer), then the values; here always unsigned bytes. Usually gzipped.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .dataset import CLASS_NAMES

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08


class DataError(ValueError):
    """Data that is missing or that is not what it should be."""


def read_images(path: Path) -> Tensor:
    """Reads an image file.

    Returns:
        ``(N, 28, 28)`` uint8.

    Raises:
        DataError: The file is unreadable, damaged or holds something else.
    """
    images = _read_idx(path, ndim=3)
    if images.shape[1:] != (28, 28):
        found = "x".join(map(str, images.shape[1:]))
        raise DataError(f"{path}: expected images of 28x28, found {found}")
    return images


def read_labels(path: Path) -> Tensor:
    """Reads a label file.

    Returns:
        ``(N,)`` int64, each from 0 to 9.

    Raises:
        DataError: The file is unreadable, damaged or holds something else.
    """
    labels = _read_idx(path, ndim=1).long()
    outside = torch.nonzero(labels >= len(CLASS_NAMES))
    if len(outside):
        at = int(outside[0])
        raise DataError(
            f"{path}: expected labels from 0 to {len(CLASS_NAMES) - 1}, "
            f"found {int(labels[at])} at position {at}"
        )
    return labels


def read_split(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    """Reads images and their labels.

    Returns:
        ``(N, 28, 28)`` uint8 images and ``(N,)`` int64 labels.

    Raises:
        DataError: As for `read_images` and `read_labels`, or their counts differ.
    """
    images, labels = read_images(images_path), read_labels(labels_path)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images)} labels, one for each image of "
            f"{images_path.name}, found {len(labels)}"
        )
    return images, labels


def _read_idx(path: Path, ndim: int) -> Tensor:
    """Reads unsigned bytes of `ndim` dimensions, at least one along the first."""
    raw = _read_bytes(path)
    header_size = 4 + 4 * ndim
    if len(raw) < header_size:
        raise DataError(
            f"{path}: expected an IDX header of {header_size} bytes, found {len(raw)} bytes"
        )
    magic = bytes((0, 0, _UINT8, ndim))
    if raw[:4] != magic:
        raise DataError(f"{path}: expected the IDX magic {magic.hex()}, found {raw[:4].hex()}")
    shape = struct.unpack(f">{ndim}I", raw[4:header_size])
    size = math.prod(shape)
    if len(raw) - header_size != size:
        dims = "x".join(map(str, shape))
        raise DataError(
            f"{path}: expected {size} bytes of values ({dims}), found {len(raw) - header_size}"
        )
    if size == 0:
        raise DataError(f"{path}: expected at least one entry, found none")
    return torch.frombuffer(raw, dtype=torch.uint8, offset=header_size).view(shape)


def _read_bytes(path: Path) -> bytearray:
    """Reads a plain or gzipped file, told apart by content: names can mislead."""
    try:
        raw = path.read_bytes()
        # A bytearray, because torch.frombuffer warns about read-only memory.
        return bytearray(gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip stream, found: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
