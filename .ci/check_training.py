"""Holds a training run on the real Fashion-MNIST against the textbook's published figures.

python .ci/check_training.py [RUN]   (default: the newest folder in runs/)
"""

import json
import os
import sys
from pathlib import Path

run = Path(sys.argv[1]) if len(sys.argv) > 1 else max(Path("runs").iterdir(), key=os.path.getmtime)
metrics = json.loads((run / "metrics.json").read_text())
last = metrics["epochs"][-1]
seconds = sum(epoch["train_seconds"] for epoch in metrics["epochs"])
print(f"{run}: {last}; {seconds:.2f} s of training in all (goal: under 2)")

assert metrics["dataset"] == "fashion-mnist", metrics["dataset"]
assert last["epoch"] == 10, last
assert 0.44 <= last["train_loss"] <= 0.46, last
assert last["train_acc"] >= 0.84, last
assert last["test_acc"] >= 0.82, last
if "comparison" in metrics:
    difference = metrics["comparison"]["max_loss_difference"]
    print(f"largest difference of the loss curves: {difference:.1e}")
    assert difference <= 1e-5, difference
for name in ("curves.png", "predictions.png", "weights.png", "model.pt"):
    assert (run / name).stat().st_size > 0, name
