"""Drawings of garments: the data set of last resort, and the one of the tests.

Each class is a handful of outlines. A drawing jitters their corners, then scales, leans, moves and
shades the whole, and adds a pattern and noise. Not Fashion-MNIST, but as hard in the same places:
t-shirt, pullover, coat and shirt differ by sleeves and details only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .dataset import CLASS_NAMES

_SIZE = 28
_CORNER_JITTER = 0.06
_NOISE = 0.05

Points = Sequence[tuple[float, float]]


class _Part(NamedTuple):
    """A filled outline; corners in [-1, 1], y pointing down; shade relative to the garment's."""

    shade: float
    corners: Points


def _mirrored(shade: float, *right_half: tuple[float, float]) -> _Part:
    """A part symmetric about x = 0, from its right half, listed from top to bottom."""
    return _Part(shade, [*right_half, *((-x, y) for x, y in reversed(right_half))])


def _part(shade: float, *corners: tuple[float, float]) -> _Part:
    return _Part(shade, corners)


# Later parts are painted over earlier ones.
_GARMENTS: dict[str, tuple[_Part, ...]] = {
    "t-shirt": (
        _mirrored(1.0, (0.12, -0.72), (0.24, -0.84), (0.46, -0.78), (0.9, -0.34), (0.7, -0.1),
                  (0.47, -0.3), (0.46, 0.86)),
    ),
    "trouser": (
        _mirrored(1.0, (0.0, -0.93), (0.36, -0.93), (0.44, 0.93), (0.14, 0.93), (0.03, -0.25)),
    ),
    "pullover": (
        _mirrored(1.0, (0.13, -0.74), (0.2, -0.82), (0.44, -0.74), (0.7, -0.4), (0.88, 0.72),
                  (0.64, 0.78), (0.47, -0.08), (0.46, 0.84)),
        _mirrored(0.8, (0.45, 0.72), (0.45, 0.84)),
    ),
    "dress": (
        _mirrored(1.0, (0.1, -0.7), (0.16, -0.92), (0.26, -0.9), (0.3, -0.45), (0.21, -0.12),
                  (0.47, 0.93)),
    ),
    "coat": (
        _mirrored(1.0, (0.1, -0.86), (0.22, -0.92), (0.46, -0.8), (0.66, -0.42), (0.8, 0.66),
                  (0.6, 0.72), (0.49, -0.05), (0.54, 0.93)),
        _mirrored(0.45, (0.02, -0.84), (0.045, 0.92)),
    ),
    "sandal": (
        _part(1.0, (-0.92, 0.4), (-0.3, 0.36), (0.5, -0.06), (0.92, -0.14), (0.92, 0.54),
              (0.78, 0.54), (0.68, 0.2), (-0.2, 0.58), (-0.9, 0.58)),
        _part(0.8, (-0.7, 0.42), (-0.42, 0.02), (-0.18, 0.0), (-0.36, 0.44)),
        _part(0.9, (0.36, 0.06), (0.4, -0.5), (0.6, -0.5), (0.6, 0.0)),
        _part(0.7, (0.4, -0.52), (0.9, -0.4), (0.9, -0.2), (0.4, -0.32)),
    ),
    "shirt": (
        _mirrored(1.0, (0.1, -0.78), (0.2, -0.88), (0.44, -0.78), (0.8, -0.1), (0.84, 0.56),
                  (0.62, 0.6), (0.47, -0.12), (0.46, 0.9)),
        _mirrored(1.25, (0.02, -0.7), (0.18, -0.88), (0.24, -0.72), (0.06, -0.5)),
        _mirrored(0.8, (0.02, -0.5), (0.035, 0.88)),
    ),
    "sneaker": (
        _part(1.0, (-0.94, 0.2), (-0.8, 0.02), (-0.3, -0.12), (0.16, -0.36), (0.4, -0.3),
              (0.8, -0.4), (0.92, -0.1), (0.93, 0.3), (-0.93, 0.34)),
        _part(1.3, (-0.94, 0.26), (0.94, 0.22), (0.92, 0.4), (-0.9, 0.42)),
        _part(0.6, (-0.28, -0.04), (0.14, -0.28), (0.22, -0.18), (-0.2, 0.06)),
    ),
    "bag": (
        _mirrored(0.8, (0.0, -0.88), (0.4, -0.7), (0.5, -0.1), (0.0, -0.1)),
        _mirrored(0.0, (0.0, -0.72), (0.26, -0.6), (0.36, -0.1), (0.0, -0.1)),
        _mirrored(1.0, (0.0, -0.22), (0.74, -0.22), (0.84, 0.72), (0.0, 0.74)),
        _mirrored(0.75, (0.0, -0.2), (0.72, -0.2), (0.5, 0.14), (0.0, 0.2)),
    ),
    "ankle boot": (
        _part(1.0, (0.0, -0.88), (0.74, -0.86), (0.78, 0.0), (0.88, 0.4), (0.84, 0.84),
              (0.46, 0.84), (0.36, 0.7), (-0.86, 0.8), (-0.9, 0.5), (-0.5, 0.22), (-0.04, 0.0)),
        _part(0.6, (-0.88, 0.68), (0.36, 0.62), (0.36, 0.72), (-0.86, 0.82)),
    ),
}  # fmt: skip


def draw_garments(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws `count` garments, the classes as even as can be, in random order.

    Args:
        count: Number of images.
        seed: Same seed, same images.

    Returns:
        ``(count, 28, 28)`` uint8 images and ``(count,)`` int64 labels.

    Raises:
        ValueError: `count` is smaller than 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(count, generator=generator) % len(CLASS_NAMES)
    images = torch.empty(count, _SIZE, _SIZE, dtype=torch.uint8)
    for label, name in enumerate(CLASS_NAMES):
        members = torch.nonzero(labels == label).flatten()
        images[members] = _draw(_GARMENTS[name], len(members), generator)
    return images, labels


def _draw(parts: Sequence[_Part], count: int, generator: torch.Generator) -> Tensor:
    """Draws one kind of garment: ``(count, 28, 28)`` uint8."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=generator) * (high - low) + low

    width, height = uniform(0.75, 1.1), uniform(0.75, 1.05)
    lean, dx, dy = uniform(-0.15, 0.15), uniform(-0.15, 0.15), uniform(-0.1, 0.1)
    shade = uniform(0.2, 1.0)
    canvas = torch.zeros(count, _SIZE, _SIZE)
    for part in parts:
        corners = torch.tensor(part.corners).expand(count, -1, -1)
        jitter = torch.randn(corners.shape, generator=generator) * _CORNER_JITTER
        x, y = torch.split(corners + jitter, 1, dim=2)
        covered = _coverage(x * width + y * lean + dx, y * height + dy)
        canvas += covered * (shade * part.shade - canvas)

    rows = torch.linspace(-1, 1, _SIZE).view(_SIZE, 1)
    columns = torch.linspace(-1, 1, _SIZE)
    angle, phase, frequency = uniform(0, math.pi), uniform(0, 2 * math.pi), uniform(2, 16)
    wave = torch.sin(frequency * (columns * angle.cos() + rows * angle.sin()) + phase)
    canvas *= 1 + uniform(0, 0.4) * wave
    # Noise on the cloth only: the background of the real set is exactly black.
    canvas += (canvas > 0.02) * torch.randn(canvas.shape, generator=generator) * _NOISE
    return (canvas.clamp_(0, 1) * 255).round_().to(torch.uint8)


def _coverage(x: Tensor, y: Tensor) -> Tensor:
    """How much of each pixel a polygon covers, 0 to 1, for ``(count, corners, 1)`` corners.

    Scan conversion: on the middle line of each row, an edge covers what lies to its right, edges
    going down with one sign and edges going up with the other.
    """
    pixel = 2 / _SIZE
    middles = torch.arange(_SIZE) * pixel - 1 + pixel / 2
    covered = torch.zeros(len(x), _SIZE, _SIZE)
    for x0, y0, x1, y1 in zip(
        x.unbind(1), y.unbind(1), x.roll(-1, 1).unbind(1), y.roll(-1, 1).unbind(1), strict=True
    ):
        direction = (y0 <= middles).float() - (y1 <= middles).float()
        # A horizontal edge crosses no middle line; the slope only has to stay finite.
        slope = (x1 - x0) / torch.where(y1 == y0, 1.0, y1 - y0)
        crossing = x0 + (middles - y0) * slope
        right = (0.5 + (middles - crossing.unsqueeze(2)) / pixel).clamp_(0, 1)
        covered += direction.unsqueeze(2) * right
    return covered.abs_().clamp_(max=1)
