"""Softmax regression on Fashion-MNIST: the textbook's loop, PyTorch's ops over tensors, and ours.

    python benchmarks/bench_training.py [--epochs 3] [--threads 1] [--out DIR]

One seed and one batch order for the three; they take turns, an epoch each. Writes training.csv.
"""

import argparse
import copy
from statistics import median

import arguments
import torch
from report import write_table
from surroundings import surroundings
from torch import nn

import softreg_ext
from softreg_ext.comparison import Comparison, Trainee, train_in_turns
from softreg_ext.data import FashionData, LoaderChoice, load_dataset, make_loader
from softreg_ext.progress import Progress

# (loader, loss) by name
LOOPS: dict[str, tuple[LoaderChoice, type[nn.Module]]] = {
    "textbook": ("dataloader", nn.CrossEntropyLoss),
    "PyTorch over tensors": ("tensor", nn.CrossEntropyLoss),
    "softreg_ext": ("tensor", softreg_ext.CrossEntropyLoss),
}


def train_all(dataset: FashionData, epochs: int) -> dict[str, Trainee]:
    """Trains the three loops in turns."""
    torch.manual_seed(0)
    start = softreg_ext.SoftmaxRegression()
    trainees = {}
    for name, (loader, loss) in LOOPS.items():
        net = copy.deepcopy(start)
        batches = make_loader(
            dataset.train_images, dataset.train_labels, 256, loader=loader, shuffle=True, seed=0
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        trainees[name] = Trainee(net, batches, loss(reduction="none"), optimizer)
    test_iter = make_loader(dataset.test_images, dataset.test_labels, 256)
    steps = len(trainees["softreg_ext"].train_iter)
    with Progress(epochs, steps, list(trainees)) as shown:
        train_in_turns(trainees, test_iter, epochs, on_step=shown.on_step, on_epoch=shown.on_epoch)
    return trainees


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = arguments.parse(parser, words, "epochs", "threads")
    torch.set_num_threads(given.threads)
    dataset = load_dataset()
    trainees = train_all(dataset, given.epochs)
    comparison = Comparison.of(trainees)

    path = given.out / "training.csv"
    rows = [
        {
            "loop": name,
            "dataset": dataset.name,
            "threads": given.threads,
            "epochs": given.epochs,
            "step_us": round(comparison.step_seconds[name] * 1e6, 1),
            "epoch_s": round(median(epoch.train_seconds for epoch in trainee.history), 4),
            "train_loss": trainee.history[-1].train_loss,
            "test_acc": trainee.history[-1].test_acc,
            **surroundings(),
        }
        for name, trainee in trainees.items()
    ]
    write_table(path, rows)
    for row in rows:
        print(f"{row['loop']:22} {row['step_us']:10.1f} us a step {row['epoch_s']:9.3f} s an epoch")
    print(path)


if __name__ == "__main__":
    main()
