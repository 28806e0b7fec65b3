"""The pictures of a run."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from softreg_ext.data import CLASS_NAMES, draw_garments
from softreg_ext.plots import plot_curves, plot_predictions, plot_weights
from softreg_ext.training import EpochResult

HISTORY = [EpochResult(epoch, 1 / epoch, 0.8, 0.7, 0.1) for epoch in (1, 2, 3)]


def pixels(path: Path) -> tuple[tuple[int, int], set[tuple[int, ...]]]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colors is not None
        return image.size, {color for _, color in colors}


@pytest.mark.parametrize("names", [["fused"], ["fused", "torch"]])
@pytest.mark.parametrize("epochs", [1, 3])
def test_curves(tmp_path: Path, names: list[str], epochs: int) -> None:
    path = tmp_path / "curves.png"
    plot_curves(path, {name: HISTORY[:epochs] for name in names}, "title")
    size, colors = pixels(path)
    assert size == (900, 400)
    assert len(colors) > 100


def test_predictions_mark_mistakes(tmp_path: Path) -> None:
    images, labels = draw_garments(12, 0)
    crimson = (220, 20, 60)
    for predicted, marked in ((labels, False), ((labels + 1) % 10, True)):
        path = tmp_path / "predictions.png"
        plot_predictions(path, images, labels, predicted, CLASS_NAMES, "title")
        size, colors = pixels(path)
        assert size == (1200, 440)
        assert (crimson in colors) == marked


def test_weights_show_signs_as_colors(tmp_path: Path) -> None:
    path = tmp_path / "weights.png"
    weight = torch.linspace(-1, 1, 7840).view(10, 784)
    plot_weights(path, weight, CLASS_NAMES, "title")
    size, colors = pixels(path)
    assert size == (900, 440)
    assert any(red > blue + 100 for red, _, blue in colors)
    assert any(blue > red + 100 for red, _, blue in colors)


def test_untrained_weights_can_be_drawn(tmp_path: Path) -> None:
    plot_weights(tmp_path / "weights.png", torch.zeros(10, 784), CLASS_NAMES, "title")
    assert pixels(tmp_path / "weights.png")[0] == (900, 440)
