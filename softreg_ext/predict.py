"""From a picture file to garment names."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from .data import CLASS_NAMES

InvertChoice = Literal["auto", "yes", "no"]
INVERT_CHOICES: tuple[InvertChoice, ...] = ("auto", "yes", "no")

_SIDE = 28


class ImageError(ValueError):
    """A file that is missing or that Pillow cannot decode."""


def load_image(path: str | Path, invert: InvertChoice = "auto") -> Tensor:
    """Reads a picture the way the training images are: gray, 28x28, light on dark.

    The aspect ratio is kept; what is missing is filled with the background.

    Args:
        path: Any file that Pillow opens.
        invert: Whether to swap light and dark; ``"auto"`` does so when the border is bright.

    Returns:
        ``(1, 28, 28)`` float from 0 to 1.

    Raises:
        ImageError: The file is missing or is no picture.
    """
    gray = _open_gray(Path(path))
    background = _border_level(gray)
    if invert == "yes" or (invert == "auto" and background > 127):
        gray, background = ImageOps.invert(gray), 255 - background
    square = ImageOps.pad(gray, (_SIDE, _SIDE), color=background)
    return torch.from_numpy(np.array(square)).unsqueeze(0).div(255)


@torch.no_grad()
def rank_classes(net: nn.Module, image: Tensor, top: int = 3) -> list[tuple[str, float]]:
    """Names the classes that `net` finds most probable.

    Args:
        net: Maps images to logits.
        image: ``(1, 28, 28)`` float, as `load_image` gives it.
        top: How many classes.

    Returns:
        Names and probabilities, the most probable first.
    """
    probabilities = net(image.unsqueeze(0)).softmax(1)[0]
    values, classes = probabilities.topk(top)
    names = [CLASS_NAMES[index] for index in classes.tolist()]
    return list(zip(names, values.tolist(), strict=True))


def _open_gray(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F" or upright.mode.startswith("I"):
                upright = Image.fromarray(_as_bytes(upright))
            elif upright.has_transparency_data:
                # Cut-outs are meant for a white page.
                upright = upright.convert("RGBA")
                page = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(page, upright)
            return upright.convert("L")
    except FileNotFoundError as error:
        raise ImageError(f"image {path}: no such file") from error
    # Pillow's decoders answer damage with whatever exception the damage leads to.
    except Exception as error:
        raise ImageError(f"image {path}: cannot be decoded: {error}") from error


def _as_bytes(image: Image.Image) -> np.ndarray:
    """Gray of more than eight bits, which convert() would clip at 255 instead of scaling it.

    From 0 to the least of 255, 65535 and, of floats, 1 that holds all pixels; where none does, the
    pixels' own range.
    """
    pixels = np.asarray(image, dtype=np.float64)
    if not np.isfinite(pixels).all():
        raise ImageError("not all of its pixels are numbers")
    black, white = float(pixels.min()), float(pixels.max())
    is_wide = image.mode.startswith("I;16")
    scales = (65535,) if is_wide else (1, 255, 65535) if image.mode == "F" else (255, 65535)
    whites = [scale for scale in scales if black >= 0 and white <= scale]
    if whites:
        black, white = 0, whites[0]
    shades: np.ndarray = np.rint((pixels - black) * (255 / max(white - black, 1e-300)))
    return shades.astype(np.uint8)


def _border_level(gray: Image.Image) -> int:
    """Median of the outermost pixels, 0 to 255."""
    pixels = np.asarray(gray)
    border = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    return int(np.median(border))
