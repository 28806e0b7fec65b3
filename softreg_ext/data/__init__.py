"""Fashion-MNIST: finding it, reading it, and feeding it to a training loop."""

from pathlib import Path

from .dataset import CLASS_NAMES, FashionData
from .idx import DataError
from .loaders import (
    LOADER_CHOICES,
    EpochOrder,
    Loader,
    LoaderChoice,
    SampleDataset,
    TensorLoader,
    make_loader,
)
from .sources import DATA_CHOICES, DataChoice, SyntheticDataWarning, cache_dir, load_dataset
from .synthetic import draw_garments

__all__ = [
    "CLASS_NAMES",
    "DATA_CHOICES",
    "LOADER_CHOICES",
    "DataChoice",
    "DataError",
    "EpochOrder",
    "FashionData",
    "Loader",
    "LoaderChoice",
    "SampleDataset",
    "SyntheticDataWarning",
    "TensorLoader",
    "cache_dir",
    "draw_garments",
    "load_dataset",
    "load_fashion_mnist",
    "make_loader",
]


def load_fashion_mnist(
    batch_size: int,
    *,
    data: DataChoice = "auto",
    data_dir: str | Path | None = None,
    loader: LoaderChoice = "tensor",
    seed: int | None = None,
) -> tuple[Loader, Loader]:
    """The textbook's ``load_data_fashion_mnist``: loaders for training and for testing.

    The batches are ``(B, 1, 28, 28)`` float images from 0 to 1 and ``(B,)`` int64 labels. The
    training batches are shuffled for each epoch.

    Args:
        batch_size: Samples per batch; the last batch may be smaller.
        data: See `load_dataset`.
        data_dir: See `load_dataset`.
        loader: ``"tensor"``, fast, or ``"dataloader"``, as in the textbook.
        seed: Of the shuffling; None follows ``torch.manual_seed``.

    Returns:
        ``(train_iter, test_iter)``.

    Raises:
        DataError: See `load_dataset`.
        ValueError: An argument is out of range.
    """
    dataset = load_dataset(data, data_dir)
    train_iter = make_loader(
        dataset.train_images,
        dataset.train_labels,
        batch_size,
        loader=loader,
        shuffle=True,
        seed=seed,
    )
    test_iter = make_loader(dataset.test_images, dataset.test_labels, batch_size, loader=loader)
    return train_iter, test_iter
