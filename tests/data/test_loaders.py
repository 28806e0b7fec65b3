"""Both loaders: order, completeness, equality."""

from pathlib import Path

import pytest
import torch
from idx_files import write_dataset
from torch import Tensor

from softreg_ext import data


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    return data.draw_garments(50, 0)


def collect(loader: data.Loader) -> tuple[list[Tensor], list[Tensor]]:
    images, labels = zip(*loader, strict=True)
    return list(images), list(labels)


@pytest.mark.parametrize("kind", data.LOADER_CHOICES)
def test_loader_keeps_every_sample(samples: tuple[Tensor, Tensor], kind: data.LoaderChoice) -> None:
    loader = data.make_loader(*samples, 16, loader=kind)
    images, labels = collect(loader)
    assert len(loader) == len(images) == 4
    assert [len(batch) for batch in images] == [16, 16, 16, 2]
    assert images[0].shape == (16, 1, 28, 28) and images[0].dtype == torch.float32
    assert labels[0].dtype == torch.int64
    assert torch.equal(torch.cat(images), samples[0].unsqueeze(1).float().div(255))
    assert torch.equal(torch.cat(labels), samples[1])


@pytest.mark.parametrize("kind", data.LOADER_CHOICES)
def test_shuffling_permutes_anew_each_epoch(
    samples: tuple[Tensor, Tensor], kind: data.LoaderChoice
) -> None:
    numbered = torch.arange(50)
    loader = data.make_loader(samples[0], numbered, 16, loader=kind, shuffle=True, seed=3)
    first, second = (torch.cat(collect(loader)[1]) for _ in range(2))
    assert not torch.equal(first, numbered) and not torch.equal(first, second)
    assert torch.equal(first.sort().values, numbered)
    assert torch.equal(second.sort().values, numbered)


def test_both_loaders_give_the_same_batches(samples: tuple[Tensor, Tensor]) -> None:
    loaders = [
        data.make_loader(*samples, 16, loader=kind, shuffle=True, seed=5)
        for kind in data.LOADER_CHOICES
    ]
    for _ in range(2):
        one, other = (collect(loader) for loader in loaders)
        for mine, yours in zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True):
            assert torch.equal(mine, yours)


def test_seedless_order_follows_the_global_seed() -> None:
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(data.EpochOrder(50).draw())
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_batches_stay_valid(samples: tuple[Tensor, Tensor]) -> None:
    batches = iter(data.make_loader(*samples, 16))
    first, _ = next(batches)
    copy = first.clone()
    next(batches)
    assert torch.equal(first, copy)


def test_loader_arguments_are_checked(samples: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.make_loader(*samples, 0)
    with pytest.raises(ValueError, match="50 images, but 3 labels"):
        data.make_loader(samples[0], samples[1][:3], 16)
    with pytest.raises(ValueError, match="loader must be one of tensor, dataloader, got 'numpy'"):
        data.make_loader(*samples, 16, loader="numpy")  # type: ignore[arg-type]


def test_load_fashion_mnist(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    train_iter, test_iter = data.load_fashion_mnist(8, data_dir=tmp_path, seed=0)
    assert (len(train_iter), len(test_iter)) == (3, 2)
    assert torch.equal(torch.cat(collect(test_iter)[1]), data.draw_garments(10, 1)[1])
    assert not torch.equal(torch.cat(collect(train_iter)[1]), data.draw_garments(20, 0)[1])


def test_class_names() -> None:
    assert len(data.CLASS_NAMES) == 10
    assert data.CLASS_NAMES[0] == "t-shirt" and data.CLASS_NAMES[9] == "ankle boot"
