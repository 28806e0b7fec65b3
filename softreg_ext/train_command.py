"""``softreg train``: one training run, from its arguments to its files."""

import argparse
import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from .comparison import Comparison, Trainee, train_in_turns
from .data import FashionData, Loader, load_dataset, make_loader
from .info import hardware
from .interrupt import Interrupt
from .loss import CrossEntropyLoss
from .model import SoftmaxRegression
from .progress import Progress, comparison_line, results_table
from .runs import RunFolder, make_fresh, versions
from .training import EpochResult, RunningMetrics

LOSSES: Mapping[str, type[nn.Module]] = {"fused": CrossEntropyLoss, "torch": nn.CrossEntropyLoss}

_PICTURED = 32


class UsageError(Exception):
    """Arguments that contradict each other or the machine."""


class TrainError(Exception):
    """Training that came to nothing."""


def run_training(args: argparse.Namespace) -> int:
    """Trains as `args` say and fills the run folder.

    Returns:
        Exit status: 0, or 130 after an interrupt; finished epochs are saved then, too.

    Raises:
        UsageError: The arguments make no sense.
        DataError: See `softreg_ext.data.load_dataset`.
        RunError: The run folder cannot be written.
        TrainError: The loss became infinite or NaN.
    """
    if args.data == "synthetic" and args.data_dir is not None:
        raise UsageError(f"argument --data-dir: {args.data_dir!r} contradicts --data synthetic")
    if args.out and not args.overwrite and (held := RunFolder(args.out).held):
        raise UsageError(
            f"argument --out: {args.out!r} already holds {held[0].name} from another run; "
            "pass --overwrite to replace it"
        )
    device = _device(args.device)
    torch.set_num_threads(args.threads)
    dataset = load_dataset(args.data, args.data_dir)
    title = f"{dataset.name} (drawn, NOT Fashion-MNIST)" if dataset.is_synthetic else dataset.name
    print(f"dataset: {title} from {dataset.source}")
    folder = RunFolder.create(args.out or make_fresh())

    torch.manual_seed(args.seed)
    net = SoftmaxRegression().to(device)
    trainees = {
        name: _trainee(name, copy.deepcopy(net), args, dataset, device)
        for name in (LOSSES if args.compare else [args.loss])
    }
    test_iter = _loader(args, dataset.test_images, dataset.test_labels, device, shuffle=False)
    interrupted = _train(trainees, test_iter, folder, _facts(args, dataset, device), args)

    histories = {name: trainee.history for name, trainee in trainees.items() if trainee.history}
    if args.loss not in histories:
        print("softreg: interrupted before an epoch ended: nothing saved", file=sys.stderr)
        return 130
    print(results_table(histories))
    if len(histories) > 1:
        comparison = Comparison.of(trainees)
        print(comparison_line(comparison))
        folder.save_metrics({**folder.load_metrics(), "comparison": asdict(comparison)})
    _draw(folder, histories, dataset, title)
    print(f"dataset: {title}")
    print("written:", *folder.files, sep="\n  ")
    if interrupted:
        print("softreg: interrupted: the epochs above are saved", file=sys.stderr)
    return 130 if interrupted else 0


def _train(
    trainees: Mapping[str, Trainee],
    test_iter: Loader,
    folder: RunFolder,
    facts: Mapping[str, Any],
    args: argparse.Namespace,
) -> bool:
    """Trains; returns whether it was interrupted."""
    chosen = trainees[args.loss]

    def save() -> None:
        folder.remove_pictures()
        folder.save_model(chosen.net)
        folder.save_metrics({**facts, "epochs": [asdict(epoch) for epoch in chosen.history]})

    def on_step(name: str, metrics: RunningMetrics) -> None:
        progress.on_step(name, metrics)
        interrupt.check()

    def on_epoch(name: str, result: EpochResult) -> None:
        if not math.isfinite(result.train_loss):
            raise TrainError(
                f"train loss became {result.train_loss} in epoch {result.epoch}: "
                f"try a smaller --lr than {args.lr:g}"
            )
        # Saved every epoch: neither an interrupt nor a crash costs more than the epoch it hits.
        if trainees[name] is chosen:
            save()
        progress.on_epoch(name, result)

    steps = len(chosen.train_iter)
    with Progress(args.epochs, steps, list(trainees)) as progress, Interrupt() as interrupt:
        try:
            train_in_turns(trainees, test_iter, args.epochs, on_step=on_step, on_epoch=on_epoch)
        except KeyboardInterrupt:
            return True
    return False


def _trainee(
    name: str, net: nn.Module, args: argparse.Namespace, dataset: FashionData, device: torch.device
) -> Trainee:
    return Trainee(
        net=net,
        train_iter=_loader(args, dataset.train_images, dataset.train_labels, device, shuffle=True),
        loss=LOSSES[name](reduction="none"),
        optimizer=torch.optim.SGD(net.parameters(), lr=args.lr),
    )


def _loader(
    args: argparse.Namespace, images: Tensor, labels: Tensor, device: torch.device, *, shuffle: bool
) -> Loader:
    if args.loader == "tensor":
        images, labels = images.to(device), labels.to(device)
    return make_loader(
        images, labels, args.batch_size, loader=args.loader, shuffle=shuffle, seed=args.seed
    )


def _facts(args: argparse.Namespace, dataset: FashionData, device: torch.device) -> dict[str, Any]:
    """What ``metrics.json`` says besides the epochs."""
    return {
        "dataset": dataset.name,
        "source": dataset.source,
        "synthetic": dataset.is_synthetic,
        "device": str(device),
        "loss": args.loss,
        "loader": args.loader,
        "config": {
            "epochs": args.epochs,
            "batch_size": args.batch_size,
            "lr": args.lr,
            "seed": args.seed,
            "threads": args.threads,
            "compare": args.compare,
        },
        "versions": versions(),
        "hardware": hardware(),
    }


def _draw(
    folder: RunFolder,
    histories: Mapping[str, Sequence[EpochResult]],
    dataset: FashionData,
    title: str,
) -> None:
    # matplotlib takes a while to import, which predict and info need not wait for.
    from .plots import plot_curves, plot_predictions, plot_weights

    net = folder.load_model()
    images, labels = dataset.test_images[:_PICTURED], dataset.test_labels[:_PICTURED]
    with torch.no_grad():
        predicted = net(images.div(255)).argmax(1)
    names = dataset.class_names
    weight, _ = net.parameters()
    plot_curves(folder.curves, histories, f"Softmax regression on {title}")
    plot_predictions(
        folder.predictions, images, labels, predicted, names, f"{title}: ✓ recognised, ✗ taken for"
    )
    plot_weights(folder.weights, weight, names, f"Templates learned from {title}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"argument --device: must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"argument --device: {name!r} is not available")
    return device
