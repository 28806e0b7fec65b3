"""The command line: ``softreg train``, ``softreg predict``, ``softreg info``."""

import argparse
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from . import __version__
from .data import DATA_CHOICES, LOADER_CHOICES, DataError
from .predict import INVERT_CHOICES, ImageError, load_image, rank_classes
from .runs import RunError, RunFolder
from .train_command import LOSSES, TrainError, UsageError, run_training


class _Parser(argparse.ArgumentParser):
    """Leaves the printing of errors to `main`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `softreg`.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        Exit status: 0, 1 after an error, 2 after wrong usage, 130 after an interrupt.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name may hold what the terminal cannot show.
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args = _parser().parse_args(argv)
            status: int = args.run(args)
            sys.stdout.flush()
            return status
        except UsageError as error:
            return _complain(error, status=2)
        except BrokenPipeError:  # whoever read the output has gone, and may: head, less
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (DataError, ImageError, RunError, TrainError, OSError) as error:
            return _complain(error, status=1)
        except KeyboardInterrupt:
            print("softreg: interrupted", file=sys.stderr)
            return 130


def _predict(args: argparse.Namespace) -> int:
    folder = RunFolder(args.run_folder)
    net = folder.load_model()
    if folder.load_metrics().get("synthetic"):
        warnings.warn("this model was trained on SYNTHETIC garments", stacklevel=2)
    status = 0
    for path in args.images:
        try:
            ranking = rank_classes(net, load_image(path, args.invert))
        except ImageError as error:
            status = _complain(error, status=1)
        else:
            names = ", ".join(f"{name} {100 * share:.1f} %" for name, share in ranking)
            print(f"{path}: {names}")
    return status


def _info(_args: argparse.Namespace) -> int:
    from .info import report

    print(report())
    return 0


def _complain(error: Exception, status: int) -> int:
    print(f"softreg: error: {error}", file=sys.stderr)
    return status


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"softreg: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="softreg", description="Softmax regression on Fashion-MNIST.")
    parser.add_argument("--version", action="version", version=f"softreg_ext {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train and write the results to a run folder",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.set_defaults(run=run_training, out=None)
    add = train.add_argument
    add(
        "--data",
        choices=DATA_CHOICES,
        default="auto",
        help="auto: Fashion-MNIST if it is found or can be downloaded, else drawn garments",
    )
    add("--data-dir", metavar="DIR", help="folder with the four Fashion-MNIST files")
    add(
        "--loader",
        choices=LOADER_CHOICES,
        default="tensor",
        help="tensor: fast; dataloader: torch's, as in the textbook",
    )
    add("--loss", choices=LOSSES, default="fused", help="fused: this package's; torch: PyTorch's")
    add("--compare", action="store_true", help="train with both losses, alternating")
    add("--epochs", type=_integer(1), default=10, metavar="N", help="epochs to train")
    add("--batch-size", type=_integer(1), default=256, metavar="N", help="samples per batch")
    add("--lr", type=_learning_rate, default=0.1, metavar="X", help="learning rate")
    add(
        "--seed",
        type=_integer(0),
        default=0,
        metavar="N",
        help="of the initial weights and the batch order",
    )
    out_help = "run folder, runs/<time> if left out"
    add("--out", metavar="DIR", default=argparse.SUPPRESS, help=out_help)
    add("--overwrite", action="store_true", help="replace the run that --out holds")
    add("--device", default="auto", help="auto (the CPU), cpu, cuda or cuda:N")
    # One: a step is so short that a second thread gains a tenth, and loses the twentyfold
    # when the core it spins on is taken.
    add(
        "--threads",
        type=_integer(1, os.cpu_count() or 1),
        default=1,
        metavar="N",
        help="CPU threads",
    )

    predict = commands.add_parser("predict", help="name the garments in pictures")
    predict.set_defaults(run=_predict)
    add = predict.add_argument
    add("run_folder", metavar="RUN", help="folder that softreg train wrote")
    add("images", nargs="+", metavar="IMAGE", help="any file that Pillow opens")
    add(
        "--invert",
        choices=INVERT_CHOICES,
        default="auto",
        help="swap light and dark (auto: when the border is bright)",
    )

    info = commands.add_parser("info", help="print versions, build and hardware")
    info.set_defaults(run=_info)
    return parser


def _integer(minimum: int, maximum: int = 2**63 - 1) -> Callable[[str], int]:
    """An argument type: whole numbers from `minimum` to `maximum`, what torch takes as a seed."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            bound = f" and <= {maximum}" if value > maximum else ""
            raise argparse.ArgumentTypeError(
                f"must be a whole number >= {minimum}{bound}, got {text!r}"
            )
        return value

    return parse


def _learning_rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a finite number > 0, got {text!r}")
    return value
