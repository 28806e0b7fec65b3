"""The pictures of a run, each written as a PNG file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .training import EpochResult

_RIGHT, _WRONG = "0.25", "crimson"
_MAX_MARKED = 20
# Curves of losses that agree lie on each other: the first is drawn wide and pale.
_UNDER: dict[str, Any] = {"linewidth": 6, "markersize": 10, "alpha": 0.35}
_OVER: dict[str, Any] = {"linewidth": 1.5, "markersize": 4, "linestyle": "--"}
_ALONE: dict[str, Any] = {**_OVER, "linestyle": "-"}


def plot_curves(path: Path, histories: Mapping[str, Sequence[EpochResult]], title: str) -> None:
    """Draws train loss, train accuracy and test accuracy over the epochs.

    Args:
        path: The file to write.
        histories: Results by the name of the loss; all go into one picture.
        title: Headline.
    """
    figure = _figure(9.0, 4.0, title)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    styles = [_ALONE] if len(histories) == 1 else [_UNDER] + [_OVER] * (len(histories) - 1)
    for (name, history), style in zip(histories.items(), styles, strict=True):
        suffix = f" ({name})" if len(histories) > 1 else ""
        for axes, measure, color in (
            (loss_axes, "train_loss", "C0"),
            (accuracy_axes, "train_acc", "C1"),
            (accuracy_axes, "test_acc", "C2"),
        ):
            axes.plot(
                [result.epoch for result in history],
                [getattr(result, measure) for result in history],
                color=color,
                marker="o" if len(history) <= _MAX_MARKED else None,
                label=measure.replace("_acc", " accuracy").replace("_", " ") + suffix,
                **style,
            )
    for axes, quantity in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png")


def plot_predictions(
    path: Path,
    images: Tensor,
    labels: Tensor,
    predicted: Tensor,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draws images over their true and predicted names, mistakes in red.

    Args:
        path: The file to write.
        images: ``(N, 28, 28)``, drawn in rows of eight.
        labels: ``(N,)`` true classes.
        predicted: ``(N,)`` predicted classes.
        class_names: Names of the classes.
        title: Headline.
    """
    columns = 8
    rows = -(-len(images) // columns)
    figure = _figure(1.5 * columns, 1.95 * rows + 0.5, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, label, guess in zip(
        grid.flat, images, labels.tolist(), predicted.tolist(), strict=False
    ):
        right = label == guess
        _show_image(axes, image, cmap="gray", limit=(0, 255))
        verdict = "✓" if right else f"✗ {class_names[guess]}"
        axes.set_title(
            f"{class_names[label]}\n{verdict}", fontsize=10, color=_RIGHT if right else _WRONG
        )
        if not right:
            for spine in axes.spines.values():
                spine.set(color=_WRONG, linewidth=2.5)
    figure.savefig(path, format="png")


def plot_weights(path: Path, weight: Tensor, class_names: Sequence[str], title: str) -> None:
    """Draws the template of each class: blue pixels speak for it, red ones against it.

    Args:
        path: The file to write.
        weight: ``(10, 784)`` weights of the linear layer.
        class_names: Names of the classes.
        title: Headline.
    """
    templates = weight.detach().cpu().view(-1, 28, 28)
    limit = float(templates.abs().max())
    figure = _figure(9.0, 4.4, title)
    grid = figure.subplots(2, 5)
    for axes, template, name in zip(grid.flat, templates, class_names, strict=True):
        picture = _show_image(axes, template, cmap="RdBu", limit=(-limit, limit))
        axes.set_title(name, fontsize=10)
    figure.colorbar(picture, ax=grid, shrink=0.85, label="weight")
    figure.savefig(path, format="png")


def _figure(width: float, height: float, title: str) -> Figure:
    """A figure of its own canvas: pyplot would keep global state and may want a display."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure


def _show_image(axes: Axes, image: Tensor, *, cmap: str, limit: tuple[float, float]) -> AxesImage:
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(image.numpy(), cmap=cmap, vmin=limit[0], vmax=limit[1])
