"""IDX files, whole and damaged."""

import gzip
import struct
from pathlib import Path

import pytest
import torch
from idx_files import FILES, idx_bytes, write_dataset

from softreg_ext.data import DataError, draw_garments, idx


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trip(tmp_path: Path, zipped: bool) -> None:
    write_dataset(tmp_path, zipped=zipped)
    suffix = ".gz" if zipped else ""
    images, labels = idx.read_split(tmp_path / (FILES[0] + suffix), tmp_path / (FILES[1] + suffix))
    expected_images, expected_labels = draw_garments(20, 0)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.equal(images, expected_images)
    assert torch.equal(labels, expected_labels)


GOOD_IMAGES = idx_bytes(torch.zeros(2, 28, 28))
BAD_IMAGES = {
    "empty": (b"", "16 bytes, found 0"),
    "short header": (GOOD_IMAGES[:15], "16 bytes, found 15"),
    "wrong magic": (b"\0\0\x0d\3" + GOOD_IMAGES[4:], "00000803, found 00000d03"),
    "labels instead": (idx_bytes(torch.zeros(20)), "00000803, found 00000801"),
    "truncated": (GOOD_IMAGES[:-1], "1568 bytes of values (2x28x28), found 1567"),
    "too long": (GOOD_IMAGES + b"\0", "1568 bytes of values (2x28x28), found 1569"),
    "wrong size": (idx_bytes(torch.zeros(2, 32, 32)), "28x28, found 32x32"),
    "no image": (idx_bytes(torch.zeros(0, 28, 28)), "at least one"),
    "huge": (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 28, 28), "found 0"),
    "truncated gzip": (gzip.compress(GOOD_IMAGES)[:-9], "gzip"),
    "gzip header only": (b"\x1f\x8b", "gzip"),
    "corrupt gzip": (gzip.compress(GOOD_IMAGES)[:12] + b"\xff" * 20, "gzip"),
    "wrong checksum": (gzip.compress(GOOD_IMAGES)[:-8] + b"\0" * 8, "gzip"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_damaged_images_are_named(tmp_path: Path, case: str) -> None:
    content, complaint = BAD_IMAGES[case]
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        idx.read_images(path)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


def test_labels_outside_the_classes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(idx_bytes(torch.tensor([3, 9, 10, 200])))
    with pytest.raises(DataError, match=r"labels: .*0 to 9, found 10 at position 2"):
        idx.read_labels(path)


def test_counts_must_agree(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(GOOD_IMAGES)
    (tmp_path / "labels").write_bytes(idx_bytes(torch.tensor([1, 2, 3])))
    with pytest.raises(DataError, match=r"labels: expected 2 labels.*images, found 3"):
        idx.read_split(tmp_path / "images", tmp_path / "labels")


def test_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: cannot be read: No such file"):
        idx.read_images(tmp_path / "gone")
