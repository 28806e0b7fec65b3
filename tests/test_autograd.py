"""Derivatives of every order and kind, on the class-index op."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from cases import check_changes_are_noticed, random_source
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.library import opcheck

import softreg_ext

OPS = torch.ops.softreg_ext
REDUCTION_CODES = {"none": 0, "mean": 1, "sum": 2}
# Few classes and many take different kernels.
CLASSES = [4, 40]


def make_inputs(classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = random_source(classes)
    logits = torch.randn(5, classes, generator=generator, dtype=dtype)
    weight = torch.rand(classes, generator=generator, dtype=dtype) + 0.5
    return logits, torch.tensor([0, 3, -100, 1, 2]), weight


def option_table() -> list[dict[str, Any]]:
    table = itertools.product(["none", "mean", "sum"], [0.0, 0.2])
    return [{"reduction": reduction, "label_smoothing": s} for reduction, s in table]


def pair(options: dict[str, Any], target: Tensor, weight: Tensor) -> list[Callable[..., Tensor]]:
    """Ours and PyTorch's as functions of the logits alone."""
    return [
        lambda logits, loss=loss: loss(logits, target, weight, **options)
        for loss in (softreg_ext.cross_entropy, F.cross_entropy)
    ]


@pytest.mark.parametrize("options", option_table(), ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_gradcheck(classes: int, options: dict[str, Any]) -> None:
    logits, target, weight = make_inputs(classes)
    logits = logits.requires_grad_()
    ours, _ = pair(options, target, weight)
    assert gradcheck(
        ours,
        logits,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(ours, logits)


@pytest.mark.parametrize("options", option_table(), ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_recorded_gradient_is_the_fused_one(classes: int, options: dict[str, Any]) -> None:
    """With create_graph=True the composite runs, which gradgradcheck holds against itself alone."""
    logits, target, weight = make_inputs(classes)
    leaf = logits.requires_grad_()
    loss = pair(options, target, weight)[0](leaf).sum()
    (fused,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (recorded,) = torch.autograd.grad(loss, leaf, create_graph=True)
    assert recorded.requires_grad
    torch.testing.assert_close(recorded.detach(), fused)


@pytest.mark.parametrize("options", option_table(), ids=str)
def test_gradcheck_without_batch(options: dict[str, Any]) -> None:
    logits = make_inputs(4)[0][0].requires_grad_()
    ours, _ = pair(options, torch.tensor(2), torch.ones(4, dtype=torch.float64))
    assert gradcheck(ours, logits, check_forward_ad=True)
    assert gradgradcheck(ours, logits)


@pytest.mark.parametrize("options", option_table(), ids=str)
@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian])
def test_func_transforms(transform: Callable[..., Any], options: dict[str, Any]) -> None:
    logits, target, weight = make_inputs(4)
    ours, torchs = pair(options, target, weight)
    torch.testing.assert_close(transform(ours)(logits), transform(torchs)(logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_per_sample_gradients(smoothing: float) -> None:
    logits, target, weight = make_inputs(4)
    results = []
    for loss in (softreg_ext.cross_entropy, F.cross_entropy):

        def one(x: Tensor, t: Tensor, loss: Callable[..., Tensor] = loss) -> Tensor:
            return loss(x[None], t[None], weight, reduction="sum", label_smoothing=smoothing)

        results.append(vmap(grad(one))(logits, target))
    torch.testing.assert_close(*results)


def test_transforms_check_their_input() -> None:
    """The composition of ATen ops that runs then accepts no more than the fused op."""
    logits, target, _ = make_inputs(4)
    for bad in (target.double(), target.bool()):
        with pytest.raises(RuntimeError, match="target"):
            grad(lambda x, bad=bad: softreg_ext.cross_entropy(x, bad))(logits)
    with pytest.raises(RuntimeError, match="label_smoothing"):
        grad(lambda x: softreg_ext.cross_entropy(x, target, label_smoothing=-1.0))(logits)


def test_nan_in_an_ignored_row_under_transforms() -> None:
    logits, target, _ = make_inputs(4)
    logits[2] = torch.nan
    gradient = grad(lambda x: softreg_ext.cross_entropy(x, target))(logits)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[2], torch.zeros(4, dtype=gradient.dtype))


def test_nan_in_an_ignored_row_of_second_derivatives() -> None:
    logits, target, _ = make_inputs(4)
    logits[2] = torch.nan
    logits.requires_grad_()
    (first,) = torch.autograd.grad(
        softreg_ext.cross_entropy(logits, target, softcap=5.0), logits, create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum(), logits)
    assert second.isfinite().all()
    assert not second[2].any()


def test_forward_mode_through_the_weight() -> None:
    """Alone: the logits have no tangent that would ask for the composition of ATen ops."""
    logits, _, weight = make_inputs(4)
    probabilities = logits.flip(0).softmax(1)
    tangents = []
    for loss in (softreg_ext.cross_entropy, F.cross_entropy):
        with fwAD.dual_level():
            dual = fwAD.make_dual(weight, weight.flip(0))
            tangents.append(fwAD.unpack_dual(loss(logits, probabilities, dual)).tangent)
    torch.testing.assert_close(*tangents)


def test_vmap_over_logits() -> None:
    logits, target, weight = make_inputs(4)
    stacked = torch.stack([logits, 2 * logits, -logits])
    ours, torchs = pair({}, target, weight)
    torch.testing.assert_close(vmap(ours)(stacked), torch.stack([torchs(x) for x in stacked]))


def test_transforms_of_no_classes() -> None:
    logits, probabilities = torch.zeros(2, 3, 0), torch.zeros(2, 3, 0)
    ignored = torch.full((3,), -100)
    for reduction in REDUCTION_CODES:
        results = [
            vmap(lambda x, p, f=f, r=reduction: f(x, p, reduction=r))(logits, probabilities)
            for f in (softreg_ext.cross_entropy, F.cross_entropy)
        ]
        torch.testing.assert_close(*results, equal_nan=True)
    gradient = grad(lambda x: softreg_ext.cross_entropy(x, ignored, reduction="sum"))(logits[0])
    assert gradient.shape == (3, 0)


def test_half_second_derivatives() -> None:
    logits, target, weight = make_inputs(4, torch.bfloat16)
    ours, torchs = pair({}, target, weight)
    torch.testing.assert_close(hessian(ours)(logits), hessian(torchs)(logits), atol=0.02, rtol=0.02)


def test_first_derivatives_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ordinary step runs one kernel each way and none of ATen's."""
    logits, target, _ = make_inputs(40)
    leaf = logits.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        softreg_ext.cross_entropy(leaf, target).backward()
    names = {event.key for event in profile.key_averages()}
    assert {"softreg_ext::cross_entropy_forward", "softreg_ext::cross_entropy_backward"} <= names
    assert not {name for name in names if "softmax" in name or "nll" in name}


def test_backward_twice() -> None:
    logits, target, _ = make_inputs(40)
    leaf = logits.requires_grad_()
    loss = softreg_ext.cross_entropy(leaf, target)
    first = torch.autograd.grad(loss, leaf, retain_graph=True)
    second = torch.autograd.grad(loss, leaf)
    assert torch.equal(first[0], second[0])


def test_changed_logits_are_noticed() -> None:
    logits, target, _ = make_inputs(40)
    check_changes_are_noticed(logits, target)


@pytest.mark.parametrize("linear", [False, True])
def test_saved_tensors_packed_as_less(linear: bool) -> None:
    def packed(x: Tensor) -> Tensor:
        return x.bfloat16() if x.is_floating_point() else x

    def unpacked(x: Tensor) -> Tensor:
        return x.float() if x.is_floating_point() else x

    input, target = torch.randn(64, 64).requires_grad_(), torch.arange(64)
    weight = torch.randn(30000, 64) / 8  # of more logits than are there at a time
    with torch.autograd.graph.saved_tensors_hooks(packed, unpacked):
        if linear:
            loss = softreg_ext.linear_cross_entropy(input, weight, target)
        else:
            loss = softreg_ext.cross_entropy(input, target)
        loss.backward()
    expected = F.cross_entropy(input @ weight.T if linear else input, target)
    (gradient,) = torch.autograd.grad(expected, input)
    assert input.grad is not None
    assert (input.grad - gradient).abs().max() < 0.02 * gradient.abs().max()


def test_no_graph_without_gradients() -> None:
    logits, target, _ = make_inputs(40)
    assert softreg_ext.cross_entropy(logits, target).grad_fn is None
    with torch.no_grad():
        assert softreg_ext.cross_entropy(logits.requires_grad_(), target).grad_fn is None
    with torch.inference_mode():
        assert softreg_ext.cross_entropy(logits, target).is_inference()


@pytest.mark.parametrize("options", option_table(), ids=str)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck(classes: int, options: dict[str, Any]) -> None:
    logits, target, weight = make_inputs(classes)
    tail = (weight, REDUCTION_CODES[options["reduction"]], -100, options["label_smoothing"])
    tail = (*tail, 0.0, 1.0, None)
    forward, backward = OPS.cross_entropy_forward.default, OPS.cross_entropy_backward.default
    checks = opcheck(forward, (logits.clone().requires_grad_(), target, *tail, False))
    assert set(checks.values()) == {"SUCCESS"}
    loss, _, *saved = forward(logits, target, *tail, False)
    checks = opcheck(backward, (torch.randn_like(loss), None, logits, target, *saved, *tail))
    assert set(checks.values()) == {"SUCCESS"}


def test_meta_tensors() -> None:
    logits, target = torch.empty(6, 10, device="meta"), torch.empty(6, device="meta").long()
    assert softreg_ext.cross_entropy(logits, target).shape == ()
    assert softreg_ext.cross_entropy(logits, target, reduction="none").shape == (6,)
    with pytest.raises(ValueError, match="batch size 6"):
        softreg_ext.cross_entropy(logits, target[:5])
