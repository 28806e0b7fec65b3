"""From picture files to names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softreg_ext.data import CLASS_NAMES, draw_garments
from softreg_ext.model import SoftmaxRegression
from softreg_ext.predict import ImageError, load_image, rank_classes

GARMENT = draw_garments(1, 0)[0][0]


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def test_training_images_come_back_unchanged(tmp_path: Path) -> None:
    path = save(tmp_path / "garment.png", GARMENT.numpy())
    image = load_image(path)
    assert image.shape == (1, 28, 28) and image.dtype == torch.float32
    assert torch.equal(image[0], GARMENT.div(255))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_bright_borders_are_inverted(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "photo.png", 255 - GARMENT.numpy(), mode)
    torch.testing.assert_close(load_image(path)[0], GARMENT.div(255), atol=0.01, rtol=0)


def test_inversion_can_be_forced(tmp_path: Path) -> None:
    path = save(tmp_path / "garment.png", GARMENT.numpy())
    assert torch.equal(load_image(path, "no")[0], GARMENT.div(255))
    assert torch.equal(load_image(path, "yes")[0], (255 - GARMENT).div(255))


def test_aspect_ratio_is_kept(tmp_path: Path) -> None:
    white_page = np.full((100, 50), 255, dtype=np.uint8)
    white_page[10:90, 5:45] = 0
    image = load_image(save(tmp_path / "tall.png", white_page))[0]
    assert not image[:, :6].any() and not image[:, -6:].any()
    assert image[14, 14] == 1
    assert (image > 0.5).sum() == pytest.approx(80 * 40 * 0.28**2, rel=0.1)


def test_transparent_cut_outs_lie_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((28, 28, 4), dtype=np.uint8)
    pixels[8:20, 8:20, 3] = 255
    image = load_image(save(tmp_path / "cutout.png", pixels))[0]
    assert image[14, 14] == 1 and image[0, 0] == 0


FULL_RANGE = GARMENT.numpy().copy()
FULL_RANGE[0, 0] = 255
DEEP = {  # more than eight bits a pixel
    "sixteen.png": FULL_RANGE.astype(np.uint16) * 257,
    "sixteen.pgm": FULL_RANGE.astype(np.uint16) * 257,
    "shares.tif": FULL_RANGE.astype(np.float32) / 255,
    "bytes.tif": FULL_RANGE.astype(np.float32),
    "wide.tif": FULL_RANGE.astype(np.int32) * 70000,
    "signed.tif": FULL_RANGE.astype(np.float32) - 128,
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_pictures_are_scaled(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / name, DEEP[name])
    assert torch.equal(load_image(path)[0], torch.from_numpy(FULL_RANGE).div(255))


def test_deep_pictures_of_one_shade(tmp_path: Path) -> None:
    assert not load_image(save(tmp_path / "black.tif", np.zeros((28, 28), np.float32))).any()
    path = save(tmp_path / "nan.tif", np.full((28, 28), np.nan, np.float32))
    with pytest.raises(ImageError, match=r"nan\.tif: .*not all of its pixels are numbers"):
        load_image(path)


def test_needles_fit(tmp_path: Path) -> None:
    image = load_image(save(tmp_path / "needle.png", np.zeros((2000, 1), dtype=np.uint8)))
    assert image.shape == (1, 28, 28)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png: cannot be decoded"):
        load_image(tmp_path / "text.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    whole = save(tmp_path / "whole.png", noise)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"half\.png: cannot be decoded"):
        load_image(tmp_path / "half.png")


def test_ranking() -> None:
    net = SoftmaxRegression()
    weight, bias = net.parameters()
    with torch.no_grad():
        weight.zero_()
        bias.copy_(torch.tensor([0.0, 1, 0, 0, 3, 0, 0, 0, 0, 2]))
    ranking = rank_classes(net, torch.zeros(1, 28, 28))
    assert [name for name, _ in ranking] == ["coat", "ankle boot", "trouser"]
    probabilities = bias.softmax(0)[[4, 9, 1]].tolist()
    assert [share for _, share in ranking] == pytest.approx(probabilities)
    assert len(rank_classes(net, torch.zeros(1, 28, 28), top=10)) == len(CLASS_NAMES)
