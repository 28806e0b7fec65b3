"""What training shows on the screen."""

import pytest
import torch

from softreg_ext import progress
from softreg_ext.comparison import Comparison
from softreg_ext.training import EpochResult, RunningMetrics


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress(epochs=2, steps=3, names=["fused"]) as shown:
        assert shown._bar is not None and shown._bar.total == 6
        metrics = RunningMetrics(torch.device("cpu"))
        metrics.add(torch.tensor(5.0), torch.eye(10)[:2], torch.tensor([0, 3]))
        shown.on_step("fused", metrics)
        assert shown._bar.n == 1
        assert shown._bar.postfix == "epoch 1/2, loss 2.500, train acc 0.500"


def test_tables() -> None:
    history = [EpochResult(1, 0.78, 0.75, 0.77, 1.5)]
    assert progress.results_table({"fused": history, "torch": history}).splitlines()[2:] == [
        "fused      1     0.7800    0.7500   0.7700    1.50",
        "torch      1     0.7800    0.7500   0.7700    1.50",
    ]
    comparison = Comparison({}, {"fused": 4e-4, "torch": 5e-4}, 1.2e-7)
    assert progress.comparison_line(comparison) == (
        "fused 400 us a step, torch 500 us a step; train losses differ by at most 1.2e-07"
    )
