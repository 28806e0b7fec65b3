"""What `softreg train` shows on the screen."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from tqdm import tqdm

from .comparison import Comparison
from .training import EpochResult, RunningMetrics

_REFRESH_SECONDS = 0.2


class Progress:
    """A bar with loss and accuracies on a terminal, one line an epoch anywhere else.

    Args:
        epochs: Epochs that each name trains.
        steps: Steps in an epoch.
        names: Names of the losses in training.
    """

    def __init__(self, epochs: int, steps: int, names: Sequence[str]) -> None:
        self.epochs = epochs
        self._prefixes = {name: f"{name}: " if len(names) > 1 else "" for name in names}
        self._finished: dict[str, EpochResult] = {}
        self._next_refresh = 0.0
        self._bar = (
            tqdm(total=epochs * steps * len(names), unit="step", leave=False)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_step(self, name: str, metrics: RunningMetrics) -> None:
        """Moves the bar; reads the metrics, which waits for the device, only now and then."""
        if self._bar is None:
            return
        self._bar.update()
        now = time.monotonic()
        if now < self._next_refresh:
            return
        self._next_refresh = now + _REFRESH_SECONDS
        before = self._finished.get(name)
        test = f", test acc {before.test_acc:.3f}" if before else ""
        epoch = before.epoch + 1 if before else 1
        self._bar.set_postfix_str(
            f"{self._prefixes[name]}epoch {epoch}/{self.epochs}, "
            f"loss {metrics.loss:.3f}, train acc {metrics.accuracy:.3f}{test}",
            refresh=False,
        )

    def on_epoch(self, name: str, result: EpochResult) -> None:
        """Takes note of a finished epoch."""
        self._finished[name] = result
        if self._bar is None:
            print(
                f"{self._prefixes[name]}epoch {result.epoch}/{self.epochs}: "
                f"train loss {result.train_loss:.4f}, train acc {result.train_acc:.4f}, "
                f"test acc {result.test_acc:.4f}, {result.train_seconds:.2f} s",
                flush=True,
            )


def results_table(histories: Mapping[str, Sequence[EpochResult]]) -> str:
    """The results as a table, one row for each epoch of each loss."""
    header = (
        f"{'loss':<6} {'epoch':>5} {'train loss':>10} {'train acc':>9} {'test acc':>8} {'s':>7}"
    )
    rows = [
        f"{name:<6} {result.epoch:>5} {result.train_loss:>10.4f} {result.train_acc:>9.4f} "
        f"{result.test_acc:>8.4f} {result.train_seconds:>7.2f}"
        for name, history in histories.items()
        for result in history
    ]
    return "\n".join((header, "-" * len(header), *rows))


def comparison_line(comparison: Comparison) -> str:
    """Speed and agreement of the losses in one line."""
    steps = ", ".join(
        f"{name} {1e6 * seconds:.0f} us a step" for name, seconds in comparison.step_seconds.items()
    )
    return f"{steps}; train losses differ by at most {comparison.max_loss_difference:.1e}"
