"""Class probabilities as target: values, both gradients, mixed dtypes."""

import itertools
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, make_case, random_source, several
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import softreg_ext


def run(
    function: Any, logits: Tensor, target: Tensor, grad_output: Tensor, **options: Any
) -> list[Tensor]:
    """Loss, gradient of the logits, gradient of the target."""
    leaves = [logits.detach().requires_grad_(), target.detach().requires_grad_()]
    loss = function(*leaves, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, grad_output)]


def check(logits: Tensor, target: Tensor, **options: Any) -> None:
    per_row = options.get("reduction") == "none" and logits.dim() > 1
    shape = (logits.shape[0], *logits.shape[2:]) if per_row else ()
    generator = random_source(7)
    grad_output = torch.randn(shape, generator=generator).to(logits.dtype)
    weight = options.get("weight")
    draws = []
    for upstream in several(grad_output):
        ours = run(softreg_ext.cross_entropy, logits, target, upstream, **options)
        torchs = run(F.cross_entropy, logits, target, upstream, **options)
        exact = oracle.cross_entropy(logits, target, grad_output=upstream, **options)
        unit = float(upstream.abs().max()) * (1.0 if weight is None else float(weight.max()))
        # the sum of the coefficients is rounded at the size of what it adds up
        unit *= max(1.0, float(target.abs().sum(1 if target.dim() > 1 else 0).max()))
        if options.get("reduction", "mean") == "mean":
            unit /= logits.numel() / logits.shape[1 if logits.dim() > 1 else 0]
        draws.append(oracle.Draw(ours[1], torchs[1], exact.grad, unit))
    oracle.assert_as_accurate(*draws)
    oracle.assert_as_accurate(oracle.Draw(ours[0], torchs[0], exact.loss))
    oracle.assert_as_accurate(oracle.Draw(ours[2], torchs[2], exact.grad_target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 9, 32, 33, 1000, 2049])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_matches_torch(
    dtype: torch.dtype, classes: int, reduction: str, smoothing: float, weighted: bool
) -> None:
    rows = 45 if classes > 100 else 300  # enough for the largest error to be a typical one
    logits, _, weight = make_case(rows, classes, dtype)
    target = make_case(rows, classes, torch.float64)[0].flip(0).softmax(1).to(dtype)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    check(logits, target, weight=weight if weighted else None, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_few_long_rows(dtype: torch.dtype, weighted: bool) -> None:
    logits, _, weight = make_case(3, 70001, dtype)
    target = logits.double().flip(1).softmax(1).to(dtype)
    check(logits, target, weight=weight if weighted else None, label_smoothing=0.1)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_classes(reduction: str) -> None:
    """Neither has elements, nor an address: they are probabilities all the same."""
    logits = torch.zeros(3, 0, requires_grad=True)
    loss = softreg_ext.cross_entropy(logits, torch.zeros(3, 0), reduction=reduction)
    expected = F.cross_entropy(logits, torch.zeros(3, 0), reduction=reduction)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.shape == (3, 0)


@pytest.mark.parametrize("classes", [500, 4001])
@pytest.mark.parametrize("weight", [None, 0.1])
def test_classes_alike_in_the_lanes(classes: int, weight: float | None) -> None:
    """Classes that round the same way: over many tiles of them that adds up."""
    logits = torch.randn(2, classes, 16, generator=random_source(classes)) * 0.01
    weights = None if weight is None else torch.full((classes,), weight)
    check(logits, torch.full_like(logits, 1 / classes), weight=weights)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 40, 3, 6), (2, 3, 2, 2, 17), (1, 6, 1, 1), (6,)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_shapes(shape: tuple[int, ...], reduction: str) -> None:
    generator = random_source(3)
    logits = torch.randn(shape, generator=generator)
    target = torch.randn(shape, generator=generator).softmax(1 if len(shape) > 1 else 0)
    check(logits, target, reduction=reduction, label_smoothing=0.1)


@pytest.mark.parametrize("classes", [5, 50])
def test_layouts_of_logits_and_target_differ(classes: int) -> None:
    logits, _, _ = make_case(20, classes, torch.float32)
    target = make_case(classes, 20, torch.float32)[0].softmax(0).t()
    check(logits, target)
    check(logits.t().contiguous().t(), target.contiguous())
    images = logits.view(2, 5, 2, classes).movedim(-1, 1)
    check(images, target.reshape(2, 5, 2, classes).movedim(-1, 1).contiguous())


@pytest.mark.parametrize("classes", [5, 50])
def test_one_hot_is_the_label(classes: int) -> None:
    logits, labels, _ = make_case(20, classes, torch.float64)
    one_hot = F.one_hot(labels, classes).double()
    for options in ({}, {"label_smoothing": 0.3}, {"reduction": "none"}):
        torch.testing.assert_close(
            softreg_ext.cross_entropy(logits, one_hot, **options),
            softreg_ext.cross_entropy(logits, labels, **options),
        )


def test_any_coefficients() -> None:
    """Nothing asks the target to be a distribution: negative, zero and large entries count."""
    logits, _, _ = make_case(20, 50, torch.float32)
    target = make_case(20, 50, torch.float32)[0].flip(1)
    check(logits, target, reduction="sum")
    check(logits, torch.zeros_like(target), reduction="sum")


@pytest.mark.parametrize(
    ("dtype", "target_dtype"), list(itertools.permutations(DTYPES, 2)), ids=str
)
@pytest.mark.parametrize("classes", [5, 50])
def test_mixed_dtypes_promote(classes: int, dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    logits, _, weight = make_case(20, classes, dtype)
    target = make_case(20, classes, torch.float64)[0].softmax(1).to(target_dtype)
    for options in ({}, {"weight": weight.double()}, {"weight": torch.ones(classes).long()}):
        loss = softreg_ext.cross_entropy(logits, target, **options)
        expected = F.cross_entropy(logits, target, **options)
        assert loss.dtype == expected.dtype
        grad_output = torch.ones_like(loss)
        ours = run(softreg_ext.cross_entropy, logits, target, grad_output, **options)
        torchs = run(F.cross_entropy, logits, target, grad_output, **options)
        for a, b in zip(ours, torchs, strict=True):
            torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)
        with torch.inference_mode():
            assert torch.equal(softreg_ext.cross_entropy(logits, target, **options), loss.detach())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(0, 5), (0, 50), (0, 5, 3), (2, 5, 0)], ids=str)
def test_no_rows(reduction: str, shape: tuple[int, ...]) -> None:
    logits = torch.empty(shape)
    ours = softreg_ext.cross_entropy(logits, logits.clone(), reduction=reduction)
    theirs = F.cross_entropy(logits, logits.clone(), reduction=reduction)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("shape", [(4, 5), (2, 40, 3), (3, 4, 2, 2), (6,)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradcheck(shape: tuple[int, ...], reduction: str) -> None:
    generator = random_source(4)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(shape[1 if len(shape) > 1 else 0], dtype=torch.float64)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return softreg_ext.cross_entropy(
            logits, target, weight, reduction=reduction, label_smoothing=0.2
        )

    assert gradcheck(loss, (logits, target), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, (logits, target))


def test_weight_gradient() -> None:
    """Differentiable here, as in PyTorch; not with labels, as in PyTorch."""
    logits, _, weight = make_case(20, 5, torch.float64)
    target = logits.flip(0).softmax(1)
    grads = []
    for function in (softreg_ext.cross_entropy, F.cross_entropy):
        leaf = weight.clone().requires_grad_()
        function(logits, target, leaf).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


OPTIONS: list[dict[str, Any]] = [
    {"reduction": "none", "label_smoothing": 0.2},
    {"reduction": "sum", "logit_scale": 2.0, "softcap": 1.5},
    {"z_loss": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", [5, 50])
def test_recorded_gradients_are_the_fused_ones(classes: int, options: dict[str, Any]) -> None:
    """With create_graph=True the composite runs, which gradgradcheck holds against itself alone."""
    logits, _, weight = make_case(20, classes, torch.float64)
    leaves = [logits.requires_grad_(), logits.detach().flip(0).softmax(1).requires_grad_()]
    loss = softreg_ext.cross_entropy(*leaves, weight, **options).sum()
    fused = torch.autograd.grad(loss, leaves, retain_graph=True)
    recorded = torch.autograd.grad(loss, leaves, create_graph=True)
    for a, b in zip(fused, recorded, strict=True):
        assert b.requires_grad
        torch.testing.assert_close(a, b.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [5, 50, 2049])
def test_transformed_logits(classes: int, dtype: torch.dtype) -> None:
    """The target's gradient reads the logits that the loss reads, scaled and capped."""
    logits, _, _ = make_case(20, classes, dtype)
    target = logits.flip(0).softmax(1).requires_grad_()
    loss = softreg_ext.cross_entropy(logits, target, logit_scale=2.0, softcap=1.5)
    (ours,) = torch.autograd.grad(loss, target)
    log_softmax = (1.5 * (2 * logits.double() / 1.5).tanh()).log_softmax(1)
    torch.testing.assert_close(ours, (-log_softmax / 20).to(dtype))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse(layout: torch.layout) -> None:
    """F.cross_entropy takes them too, but for the gradient of the logits."""
    logits, _, weight = make_case(6, 5, torch.float64)
    dense = F.threshold(logits.flip(0).softmax(1), 0.2, 0.0)
    target = dense.to_sparse(layout=layout)
    upstream = torch.tensor(0.7, dtype=torch.float64)
    options = {"weight": weight, "label_smoothing": 0.1}
    found = run(softreg_ext.cross_entropy, logits, target, upstream, **options)
    expected = run(softreg_ext.cross_entropy, logits, dense, upstream, **options)
    found[2] = found[2].to_dense()
    expected[2] = expected[2].masked_fill(dense == 0, 0)
    torch.testing.assert_close(found, expected)
    theirs = F.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(softreg_ext.cross_entropy(logits, target, reduction="sum"), theirs)


def test_sparse_labels_are_refused() -> None:
    logits, labels, _ = make_case(6, 5, torch.float64)
    for loss in (F.cross_entropy, softreg_ext.cross_entropy):
        with pytest.raises(NotImplementedError):
            loss(logits, labels.to_sparse())
    for name, sparse in {"input": logits, "target": labels}.items():
        given = {"input": logits, "target": labels, name: sparse.to_sparse()}
        with pytest.raises(NotImplementedError, match=f"{name} must be dense, but its layout is"):
            softreg_ext.cross_entropy(**given)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_opcheck(options: dict[str, Any]) -> None:
    logits, _, weight = make_case(6, 5, torch.float64)
    target = logits.flip(0).softmax(1)
    reduction = ["none", "mean", "sum"].index(options.get("reduction", "mean"))
    tail = (weight, reduction, -100, options.get("label_smoothing", 0.0))
    tail = (*tail, options.get("z_loss", 0.0), options.get("logit_scale", 1.0))
    tail = (*tail, options.get("softcap"))
    ops = torch.ops.softreg_ext
    loss, _, *saved = ops.cross_entropy_forward(logits, target, *tail, False)
    arguments = (torch.randn_like(loss), None, logits, target, *saved, *tail)
    checks = opcheck(ops.cross_entropy_grad_target.default, arguments)
    assert set(checks.values()) == {"SUCCESS"}


def test_labels_have_no_gradient() -> None:
    logits, labels, _ = make_case(6, 5, torch.float64)
    tail = (None, 1, -100, 0.0, 0.0, 1.0, None)
    ops = torch.ops.softreg_ext
    loss, _, *saved = ops.cross_entropy_forward(logits, labels, *tail, False)
    with pytest.raises(RuntimeError, match="target of Long class indices has no gradient"):
        ops.cross_entropy_grad_target(loss, None, logits, labels, *saved, *tail)
