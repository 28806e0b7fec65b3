"""What linear_cross_entropy says to bad arguments, and its module."""

from typing import Any

import numpy as np
import pytest
import torch
from linear_cases import CLASSES, FEATURES, ROWS, apart, make_inputs
from torch import Tensor, nn

import softreg_ext

pytestmark = pytest.mark.usefixtures("small_chunks")

BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "linear_weight must be a Tensor, but got 3", {"linear_weight": 3}),
    (TypeError, "linear_bias must be a Tensor", {"linear_bias": [1.0]}),
    (TypeError, "label_smoothing must be a float", {"label_smoothing": "a"}),
    (TypeError, "ignore_index must be an int, but got False", {"ignore_index": False}),
    (ValueError, "reduction must be 'none', 'mean' or 'sum', but got 'max'", {"reduction": "max"}),
    (RuntimeError, r"got \[37, 1, 6\]", {"input": torch.zeros(ROWS, 1, FEATURES)}),
    (
        RuntimeError,
        "input has 7 features, but linear_weight takes 6",
        {"input": torch.zeros(37, 7)},
    ),
    (
        RuntimeError,
        r"linear_weight must have shape .* got \[6\]",
        {"linear_weight": torch.zeros(6)},
    ),
    (
        RuntimeError,
        "linear_weight must have input's dtype Float, but got Double",
        {"linear_weight": torch.zeros(CLASSES, FEATURES, dtype=torch.float64)},
    ),
    (
        RuntimeError,
        r"linear_bias must have shape \[50\], but got \[1\]",
        {"linear_bias": torch.zeros(1)},
    ),
    (RuntimeError, "weight must have one entry for each of the 50", {"weight": torch.zeros(3)}),
    (
        ValueError,
        "input has batch size 37, but target has shape",
        {"target": torch.zeros(3).long()},
    ),
    (
        NotImplementedError,
        "must be float32, float64, bfloat16 or float16, but got Int",
        {
            "input": torch.zeros(ROWS, FEATURES).int(),
            "linear_weight": torch.zeros(CLASSES, FEATURES).int(),
            "linear_bias": None,
        },
    ),
    (RuntimeError, "label_smoothing must be between 0 and 1, but got 2", {"label_smoothing": 2.0}),
    (TypeError, "options must be a torch.nn.LinearCrossEntropyOptions or None", {"options": 3}),
]


def call(**changes: Any) -> Tensor:
    (input, weight, bias), target = make_inputs(torch.float32)
    arguments = {"input": input, "linear_weight": weight, "target": target, "linear_bias": bias}
    loss: Tensor = softreg_ext.linear_cross_entropy(**{**arguments, **changes})
    return loss


@pytest.mark.parametrize(("error", "message", "changes"), BAD, ids=lambda x: str(x)[:40])
def test_bad_arguments(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.index_error
@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_bad_label_is_named_by_its_row(label: int) -> None:
    target = make_inputs()[1]
    target[31] = label
    with pytest.raises(
        IndexError, match=f"target {label} at row 31 is out of bounds for 50 classes"
    ):
        call(target=target)


def test_other_numbers() -> None:
    assert torch.equal(call(ignore_index=None), call())
    assert torch.equal(call(ignore_index=np.int64(-100)), call())
    assert torch.equal(call(label_smoothing=np.float32(0.5)), call(label_smoothing=0.5))
    assert torch.equal(call(z_loss=torch.tensor(0.5)), call(z_loss=0.5))


@pytest.mark.skipif(
    not hasattr(nn, "LinearCrossEntropyOptions"), reason="this torch has no options"
)
@pytest.mark.filterwarnings("ignore")  # the tracer warns of its own insides
def test_options_change_nothing() -> None:
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=5)
    assert torch.equal(call(options=options), call())
    ours = softreg_ext.LinearCrossEntropyLoss(FEATURES, 8, options=options)
    torchs = nn.LinearCrossEntropyLoss(FEATURES, 8, options=options)
    ours.load_state_dict(torchs.state_dict())
    input, target = torch.randn(20, FEATURES), torch.randint(8, (20,))
    torch.testing.assert_close(ours(input, target), torchs(input, target))
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    assert torch.equal(compiled(input, target), ours(input, target))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"weight must have shape \(8,\), but got \(7,\)", {"weight": torch.ones(7)}),
        ("label_smoothing must be between 0 and 1, but got 1.5", {"label_smoothing": 1.5}),
    ],
    ids=["weight", "smoothing"],
)
def test_module_refuses(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=message):
        softreg_ext.LinearCrossEntropyLoss(FEATURES, 8, **options)
    if hasattr(nn, "LinearCrossEntropyLoss"):
        with pytest.raises(RuntimeError):
            nn.LinearCrossEntropyLoss(FEATURES, 8, **options)


def test_module() -> None:
    weight = torch.linspace(0.5, 2, 8)
    options = {"bias": True, "weight": weight, "label_smoothing": 0.1, "out_features": (2,)}
    module = softreg_ext.LinearCrossEntropyLoss(FEATURES, 8, **options)
    input, target = torch.randn(20, FEATURES), torch.randint(8, (20, 2))
    leaves = [input, module.linear.weight.view(8, 2, FEATURES), module.linear.bias.view(8, 2)]
    expected = apart(leaves, target, weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(module(input, target), expected)
    assert "num_classes=8, out_features=(2,), reduction=mean" in repr(module)
    if hasattr(nn, "LinearCrossEntropyLoss"):
        torchs = nn.LinearCrossEntropyLoss(FEATURES, 8, **options)
        module.load_state_dict(torchs.state_dict())
        torch.testing.assert_close(module(input, target), torchs(input, target))
