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
    "softcap 30",
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
# And on a GPU: powers of two up to what fills it, the rows halved above; and vocabularies that are
# no multiple of anything.
GPU_SIZES = (
    *((32768, classes) for classes in (256, 1024, 4096, 16384, 65536)),
    *((16384, 131072), (8192, 262144)),
    *((8192, 50257), (8192, 32001), (4096, 151936)),
)
GPU_QUICK_SIZES = ((256, 10), (8192, 1024), (4096, 32001), (64, 262144))
QUICK_SIZES = ((256, 10), (4096, 100), (4096, 1000), (1024, 32000))


@dataclass(frozen=True)
class Cell:
    """One line of the grid.

    Attributes:
        shape: Of the logits, (N, C) or (N, C, d1, d2).
        dtype: "float32", "bfloat16" or "float64".
        threads: Of the process.
        variant: One of `VARIANTS`.
        device: "cpu" or "cuda".
    """

    shape: tuple[int, ...]
    dtype: str
    threads: int
    variant: str = "plain"
    device: str = "cpu"

    @property
    def logits(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def columns(self) -> dict[str, Any]:
        """Which say in a table what was measured."""
        return {
            "size": self.size,
            "dtype": self.dtype,
            "variant": self.variant,
            "threads": self.threads,
        }

    def __str__(self) -> str:
        where = f"{self.threads} threads" if self.device == "cpu" else self.device
        return f"{self.size} {self.dtype} {self.variant}, {where}"


def grid(threads: list[int], quick: bool) -> Iterator[Cell]:
    """Every cell to measure; the quick grid is one of float32 on most threads."""
    most = max(threads)
    if quick:
        yield from (Cell(size, "float32", most) for size in QUICK_SIZES)
        yield Cell(IMAGES, "float32", most)
        yield Cell((4096, 1000), "float32", most, "probabilities")
        return
    for count in threads:
        for size in SIZES:
            yield from (Cell(size, dtype, count) for dtype in ("float32", "bfloat16"))
    yield Cell((4096, 1000), "float64", most)
    for count in threads:
        yield Cell(IMAGES, "float32", count)
    for variant in VARIANTS[1:]:
        yield Cell((4096, 1000), "float32", most, variant)
        yield Cell(IMAGES, "float32", most, variant)


def gpu_grid(quick: bool, device: str = "cuda") -> Iterator[Cell]:
    """The grid of a GPU, what matters most first: time may be up before its end."""
    sizes = GPU_QUICK_SIZES if quick else (*GPU_SIZES, *SIZES)
    for size in sizes:
        yield from (Cell(size, dtype, 1, device=device) for dtype in ("bfloat16", "float32"))
    if quick:
        return
    yield Cell((4096, 1000), "float64", 1, device=device)
    yield Cell(IMAGES, "float32", 1, device=device)
    for variant in VARIANTS[1:]:
        yield Cell((32768, 4096), "bfloat16", 1, variant, device)
        yield Cell(IMAGES, "float32", 1, variant, device)


@dataclass(frozen=True)
class Inputs:
    logits: Tensor
    target: Tensor
    options: dict[str, Any]

    @property
    def has_labels(self) -> bool:
        return not self.target.is_floating_point()

    def fewest_bytes(self, mode: str) -> int:
        """What a mode must read and write, whoever computes it, each thing once.

        The loss reads the logits, but for ignored rows, and the target; its gradient reads them
        too and is written; both together read once and write once. Left out: what a row leaves
        for the backward pass, which an implementation chooses.
        """
        logits = self.logits.nbytes
        if self.has_labels:
            rows = int((self.target != -100).sum())
            logits = rows * self.logits.shape[1] * self.logits.element_size()
        options = sum(x.nbytes for x in self.options.values() if isinstance(x, Tensor))
        losses = self.logits[:, 0].nbytes if self.options.get("reduction") == "none" else 0
        written = 0 if mode == "forward" else self.logits.nbytes
        return logits + self.target.nbytes + options + losses + written


def make_inputs(cell: Cell) -> Inputs:
    """Normal logits, uniform labels, always the same ones."""
    generator = torch.Generator(cell.device).manual_seed(0)
    dtype, random = getattr(torch, cell.dtype), {"generator": generator, "device": cell.device}
    logits = torch.randn(cell.shape, **random).to(dtype)
    rows, classes = (cell.shape[0], *cell.shape[2:]), cell.shape[1]
    target = torch.randint(classes, rows, **random)
    options: dict[str, Any] = {}
    if cell.variant == "half ignored":
        target[torch.rand(rows, **random) < 0.5] = -100
    elif cell.variant == "smoothing 0.1":
        options["label_smoothing"] = 0.1
    elif cell.variant == "class weights":
        options["weight"] = (torch.rand(classes, **random) + 0.5).to(dtype)
    elif cell.variant == "probabilities":
        target = torch.randn(cell.shape, **random).softmax(1).to(dtype)
    elif cell.variant == "reduction none":
        options["reduction"] = "none"
    elif cell.variant == "softcap 30":
        options["softcap"] = 30.0
    return Inputs(logits, target, options)
