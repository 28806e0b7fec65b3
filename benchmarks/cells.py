"""The grid: what is measured, and the inputs of each cell."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VARIANTS = (
    "plain",
    "half ignored",
    "smoothing 0.1",
    "class weights",
    "probabilities",
    "reduction none",
)
SIZES = (
    (256, 10),
    (8192, 10),
    (4096, 100),
    (256, 1000),
    (4096, 1000),
    (2048, 32000),
    (1024, 50257),
    (512, 128256),
)
IMAGES = (8, 21, 128, 128)  # a segmentation: 8 pictures, 21 classes, 128 x 128 pixels
QUICK_SIZES = ((256, 10), (4096, 100), (4096, 1000), (1024, 32000))


@dataclass(frozen=True)
class Cell:
    """One line of the grid.

    Attributes:
        shape: Of the logits, (N, C) or (N, C, d1, d2).
        dtype: "float32", "bfloat16" or "float64".
        threads: Of the process.
        variant: One of `VARIANTS`.
    """

    shape: tuple[int, ...]
    dtype: str
    threads: int
    variant: str = "plain"

    @property
    def logits(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.size} {self.dtype} {self.variant}, {self.threads} threads"


def grid(threads: list[int], quick: bool) -> Iterator[Cell]:
    """Every cell to measure; the quick grid is one of float32 on all threads."""
    if quick:
        yield from (Cell(size, "float32", threads[-1]) for size in QUICK_SIZES)
        yield Cell(IMAGES, "float32", threads[-1])
        yield Cell((4096, 1000), "float32", threads[-1], "probabilities")
        return
    for count in threads:
        for size in SIZES:
            yield from (Cell(size, dtype, count) for dtype in ("float32", "bfloat16"))
    yield Cell((4096, 1000), "float64", threads[-1])
    for count in threads:
        yield Cell(IMAGES, "float32", count)
    for variant in VARIANTS[1:]:
        yield Cell((4096, 1000), "float32", threads[-1], variant)
        yield Cell(IMAGES, "float32", threads[-1], variant)


@dataclass(frozen=True)
class Inputs:
    logits: Tensor
    target: Tensor
    options: dict[str, Any]


def make_inputs(cell: Cell) -> Inputs:
    """Normal logits, uniform labels, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, cell.dtype)
    logits = torch.randn(cell.shape, generator=generator).to(dtype)
    rows, classes = (cell.shape[0], *cell.shape[2:]), cell.shape[1]
    target = torch.randint(classes, rows, generator=generator)
    options: dict[str, Any] = {}
    if cell.variant == "half ignored":
        target[torch.rand(rows, generator=generator) < 0.5] = -100
    elif cell.variant == "smoothing 0.1":
        options["label_smoothing"] = 0.1
    elif cell.variant == "class weights":
        options["weight"] = (torch.rand(classes, generator=generator) + 0.5).to(dtype)
    elif cell.variant == "probabilities":
        target = torch.randn(cell.shape, generator=generator).softmax(1).to(dtype)
    elif cell.variant == "reduction none":
        options["reduction"] = "none"
    return Inputs(logits, target, options)
