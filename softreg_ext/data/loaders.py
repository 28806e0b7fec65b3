"""Two ways to feed the same batches: tensors gathered by index, or the textbook's DataLoader."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

LoaderChoice = Literal["tensor", "dataloader"]
LOADER_CHOICES: tuple[LoaderChoice, ...] = ("tensor", "dataloader")


class EpochOrder(Sampler[int]):
    """The order of the samples, drawn anew for each epoch.

    Args:
        count: Number of samples.
        seed: Same seed, same sequence of orders; None takes one from torch's global generator.
        shuffle: False keeps the samples as they are.
    """

    def __init__(self, count: int, seed: int | None = None, *, shuffle: bool = True) -> None:
        self.count = count
        self.shuffle = shuffle
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        yield from self.draw().tolist()

    def draw(self) -> Tensor:
        """The next epoch's order: ``(count,)`` int64."""
        if self.shuffle:
            return torch.randperm(self.count, generator=self.generator)
        return torch.arange(self.count)


class TensorLoader:
    """Batches gathered from tensors in memory; iterate once per epoch.

    Each batch is ``(B, 1, 28, 28)`` float from 0 to 1 and ``(B,)`` int64, on the device of the
    images; it stays valid when the next one is made. The last one may be smaller.

    Args:
        images: ``(N, 28, 28)`` uint8.
        labels: ``(N,)`` int64, on the device of the images.
        batch_size: Samples per batch.
        order: Order of the samples.

    Raises:
        ValueError: The counts differ, or `batch_size` is smaller than 1.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, order: EpochOrder) -> None:
        _check(images, labels, batch_size)
        self.images = images.unsqueeze(1)
        self.labels = labels
        self.batch_size = batch_size
        self.order = order

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order.draw().to(self.images.device)
        labels = self.labels.index_select(0, order)
        for index, target in zip(
            torch.split(order, self.batch_size), torch.split(labels, self.batch_size), strict=True
        ):
            # Floats made per batch, not held: gathering bytes and dividing takes less time than
            # gathering floats, and a quarter of the memory.
            yield self.images.index_select(0, index).div(255), target


class SampleDataset(Dataset[tuple[Tensor, int]]):
    """One sample at a time, as torchvision's ``FashionMNIST`` with ``ToTensor`` gives them.

    Args:
        images: ``(N, 28, 28)`` uint8.
        labels: ``(N,)`` int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.unsqueeze(1)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The ``(1, 28, 28)`` float image, from 0 to 1, and its label."""
        return self.images[index].div(255), int(self.labels[index])


Loader = TensorLoader | DataLoader[tuple[Tensor, int]]


def make_loader(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    loader: LoaderChoice = "tensor",
    shuffle: bool = False,
    seed: int | None = None,
) -> Loader:
    """Makes a loader; both kinds give the same batches from the same seed.

    Args:
        images: ``(N, 28, 28)`` uint8.
        labels: ``(N,)`` int64.
        batch_size: Samples per batch; the last batch may be smaller.
        loader: ``"tensor"`` for `TensorLoader`, ``"dataloader"`` for torch's ``DataLoader``.
        shuffle: Whether each epoch has an order of its own.
        seed: See `EpochOrder`.

    Raises:
        ValueError: `loader` is unknown, the counts differ, or `batch_size` is smaller than 1.
    """
    if loader not in LOADER_CHOICES:
        raise ValueError(f"loader must be one of {', '.join(LOADER_CHOICES)}, got {loader!r}")
    _check(images, labels, batch_size)
    order = EpochOrder(len(images), seed, shuffle=shuffle)
    if loader == "tensor":
        return TensorLoader(images, labels, batch_size, order)
    return DataLoader(SampleDataset(images, labels), batch_size, sampler=order)


def _check(images: Tensor, labels: Tensor, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")
