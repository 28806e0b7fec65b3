"""z_loss, logit_scale, softcap and return_lse, against the composite that they stand for."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, make_case, random_source
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap
from torch.library import opcheck

import softreg_ext

OPS = torch.ops.softreg_ext
OPTIONS: list[dict[str, Any]] = [
    {"z_loss": 0.01},
    {"logit_scale": -1.5},
    {"softcap": 5.0},
    {"z_loss": 0.1, "logit_scale": 0.3, "softcap": 2.0, "label_smoothing": 0.1},
]


def composite(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss and lse from PyTorch's own functions."""
    y = input * logit_scale
    y = y if softcap is None else softcap * torch.tanh(y / softcap)
    lse = y.logsumexp(1)
    losses = F.cross_entropy(
        y, target, weight, None, ignore_index, None, "none", label_smoothing=label_smoothing
    )
    ones = torch.ones_like(losses)
    if target.is_floating_point():
        counts, row_weight = ones, ones
    else:
        counts = (target != ignore_index).to(ones.dtype)
        safe = target.where(target != ignore_index, 0)
        row_weight = counts if weight is None else counts * weight[safe]
    losses = losses + z_loss * lse**2 * counts
    loss = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / row_weight.sum()}
    return loss[reduction], lse


def both(function: Any, leaf: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    if function is composite:
        return composite(leaf, target, **options)
    loss, lse = softreg_ext.cross_entropy(leaf, target, return_lse=True, **options)
    return loss, lse


def results(
    function: Any, logits: Tensor, target: Tensor, dtype: torch.dtype, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, lse, and the gradient of a weighted sum of both, computed in `dtype`."""
    leaf = logits.to(dtype).detach().requires_grad_()
    if "weight" in options:
        options["weight"] = options["weight"].to(dtype)
    target = target.to(dtype) if target.is_floating_point() else target
    loss, lse = both(function, leaf, target, **options)
    upstream = torch.linspace(-1, 1, lse.numel(), dtype=torch.float64).reshape(lse.shape)
    total = loss.sum() + (lse * upstream.to(lse.dtype)).sum()
    (grad,) = torch.autograd.grad(total, leaf)
    return loss.detach(), lse.detach(), grad


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 9, 33, 300, 2049])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("probabilities", [False, True], ids=["labels", "probabilities"])
def test_matches_the_composite(
    classes: int,
    dtype: torch.dtype,
    options: dict[str, Any],
    reduction: str,
    probabilities: bool,
) -> None:
    logits, target, weight = make_case(40, classes, dtype)
    target[7] = -100
    if probabilities:
        target = logits.double().flip(0).softmax(1).to(dtype)
    options = {"weight": weight, "reduction": reduction, **options}
    exact = results(composite, logits, target, torch.float64, **options)
    ours = results(softreg_ext.cross_entropy, logits, target, dtype, **options)
    theirs = results(composite, logits, target, dtype, **options)
    # A gradient is rounded at the size of the weights (oracle.Draw), then multiplied.
    unit = float(weight.abs().max()) * abs(options.get("logit_scale", 1.0))
    if reduction == "mean":
        unit /= float(weight[target[target != -100]].sum()) if not probabilities else len(logits)
    for name, a, b, e in zip(("loss", "lse", "grad"), ours, theirs, exact, strict=True):
        if name == "lse" and dtype in (torch.bfloat16, torch.float16):
            assert a.dtype == torch.float32
            a = a.to(dtype)
        if dtype == torch.float64:
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
        else:
            size = max(unit, float(e.abs().max())) if name == "grad" else None
            oracle.assert_as_accurate(oracle.Draw(a, b, oracle.extended(e), size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tanh(dtype: torch.dtype) -> None:
    """A lone class's lse is its logit, capped at 1 the tanh: exact for its size, small or large."""
    sizes = torch.logspace(-30, 1.5, 4001, dtype=dtype)
    logits = torch.cat((sizes, -sizes))[:, None]
    exact = np.tanh(oracle.extended(logits[:, 0]))
    labels = torch.zeros(len(logits), dtype=torch.long)

    def tanh_and_slope(function: Any) -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        lse = both(function, leaf, labels, softcap=1.0)[1]
        return lse, torch.autograd.grad(lse.sum(), leaf)[0][:, 0]

    ours, our_slope = tanh_and_slope(softreg_ext.cross_entropy)
    torchs, torchs_slope = tanh_and_slope(composite)
    oracle.assert_as_accurate(oracle.at_own_size(ours, torchs, exact))
    oracle.assert_as_accurate(oracle.Draw(our_slope, torchs_slope, 1 - exact**2, 1.0))


@pytest.mark.parametrize("classes", [5, 40])
def test_k_dimensional(classes: int) -> None:
    logits = torch.randn(2, classes, 3, 7, dtype=torch.float64)
    target = torch.randint(classes, (2, 3, 7))
    target[0, 1] = -100
    for memory in (logits, logits.contiguous(memory_format=torch.channels_last)):
        ours = results(softreg_ext.cross_entropy, memory, target, torch.float64, **OPTIONS[-1])
        theirs = results(composite, memory, target, torch.float64, **OPTIONS[-1])
        torch.testing.assert_close(ours, theirs)


def inputs(classes: int) -> tuple[Tensor, Tensor]:
    generator = random_source(classes)
    logits = torch.randn(4, classes, generator=generator, dtype=torch.float64)
    return logits, torch.tensor([0, 3, -100, 1])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", [4, 34])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(classes: int, options: dict[str, Any], reduction: str) -> None:
    logits, target = inputs(classes)
    logits.requires_grad_()

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        return softreg_ext.cross_entropy(x, target, reduction=reduction, return_lse=True, **options)

    assert gradcheck(ours, logits, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(ours, logits)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["labels", "probabilities"])
def test_first_derivative_of_a_second(options: dict[str, Any], probabilities: bool) -> None:
    """With create_graph=True the composite runs, which gradgradcheck holds against itself alone."""
    logits, target = inputs(40)
    target = logits.flip(0).softmax(1) if probabilities else target
    leaf = logits.requires_grad_()
    loss, lse = both(softreg_ext.cross_entropy, leaf, target, **options)
    total = loss + (lse * torch.arange(4)).sum()
    (fused,) = torch.autograd.grad(total, leaf, retain_graph=True)
    (recorded,) = torch.autograd.grad(total, leaf, create_graph=True)
    assert recorded.requires_grad
    torch.testing.assert_close(recorded.detach(), fused)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian])
def test_func_transforms(transform: Callable[..., Any], options: dict[str, Any]) -> None:
    logits, target = inputs(4)
    ours = transform(lambda x: both(softreg_ext.cross_entropy, x, target, **options))(logits)
    theirs = transform(lambda x: composite(x, target, **options))(logits)
    torch.testing.assert_close(ours, theirs)


def test_vmap() -> None:
    logits, target = inputs(4)
    stacked = torch.stack([logits, -logits])
    ours = vmap(lambda x: both(softreg_ext.cross_entropy, x, target, **OPTIONS[-1]))(stacked)
    theirs = [composite(x, target, **OPTIONS[-1]) for x in stacked]
    torch.testing.assert_close(ours, tuple(map(torch.stack, zip(*theirs, strict=True))))


@pytest.mark.parametrize("classes", [10, 100])
def test_lse_of_ignored_rows(classes: int) -> None:
    """lse knows nothing of the labels, and its gradient flows into ignored rows too."""
    logits, target = inputs(classes)
    leaf = logits.requires_grad_()
    loss, lse = softreg_ext.cross_entropy(leaf, target, return_lse=True)
    torch.testing.assert_close(lse, leaf.logsumexp(1))
    (from_loss,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    assert not from_loss[2].any()
    (from_lse,) = torch.autograd.grad(lse.sum(), leaf)
    torch.testing.assert_close(from_lse, leaf.softmax(1))
    many = leaf.detach().repeat(20, 1)  # vectors of rows with none that counts
    lse = softreg_ext.cross_entropy(many, target.new_full((len(many),), -100), return_lse=True)[1]
    torch.testing.assert_close(lse, many.logsumexp(1))


@pytest.mark.parametrize("classes", [10, 100, 1000, 2049])
def test_lse_of_nothing(classes: int) -> None:
    """As torch.logsumexp: -inf where every logit is."""
    logits = torch.full((3, classes), -math.inf)
    lse = softreg_ext.cross_entropy(logits, torch.zeros(3).long(), return_lse=True)[1]
    assert torch.equal(lse, logits.logsumexp(1))


def test_lse_shapes() -> None:
    lse = softreg_ext.cross_entropy(torch.zeros(5), torch.tensor(1), return_lse=True)[1]
    torch.testing.assert_close(lse, torch.tensor(math.log(5)))
    image = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    lse = softreg_ext.cross_entropy(image, image[:, 0].long(), return_lse=True)[1]
    assert (lse.shape, lse.dtype) == ((2, 4), torch.float32)


def test_masked_classes_under_a_scale() -> None:
    logits, target = inputs(40)
    logits[:, 7] = -math.inf
    leaf = logits.requires_grad_()
    loss, lse = softreg_ext.cross_entropy(leaf, target, logit_scale=0.5, return_lse=True)
    torch.autograd.backward([loss, lse.sum()])
    assert loss.isfinite() and leaf.grad is not None and leaf.grad.isfinite().all()
    assert not leaf.grad[:, 7].any()


def test_huge_logits_without_z_loss() -> None:
    """lse squared would be infinite; it is not taken where nobody asks."""
    loss = softreg_ext.cross_entropy(torch.full((2, 40), 1e30), torch.tensor([1, 2]))
    torch.testing.assert_close(loss, torch.tensor(math.log(40)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fused(options: dict[str, Any]) -> None:
    logits, target = inputs(40)
    leaf = logits.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss, lse = both(softreg_ext.cross_entropy, leaf, target, **options)
        torch.autograd.backward([loss, lse.sum()])
    names = {event.key for event in profile.key_averages()}
    assert {"softreg_ext::cross_entropy_forward", "softreg_ext::cross_entropy_backward"} <= names
    assert not {n for n in names if any(word in n for word in ("softmax", "nll", "tanh", "exp_"))}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck() -> None:
    logits, target = inputs(40)
    for cap, return_lse in itertools.product([2.0, None], [False, True]):
        tail = (None, 1, -100, 0.1, 0.01, 0.5, cap)
        forward, backward = OPS.cross_entropy_forward.default, OPS.cross_entropy_backward.default
        results = opcheck(forward, (logits.clone().requires_grad_(), target, *tail, return_lse))
        assert set(results.values()) == {"SUCCESS"}
        loss, lse, state, total_weight = forward(logits, target, *tail, return_lse)
        grad_lse = torch.randn_like(lse) if return_lse else None
        given = (torch.randn_like(loss), grad_lse, logits, target, state, total_weight, *tail)
        assert set(opcheck(backward, given).values()) == {"SUCCESS"}


@pytest.mark.filterwarnings("ignore")  # the tracers warn of their own insides
def test_compile() -> None:
    torch._dynamo.reset()
    logits, target = inputs(40)

    def step(x: Tensor) -> Tensor:
        loss, lse = both(softreg_ext.cross_entropy, x, target, **OPTIONS[-1])
        return loss + lse.square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    leaf = logits.requires_grad_()
    for function in (compiled, step):
        torch.testing.assert_close(function(leaf), step(leaf))
        (grad,) = torch.autograd.grad(function(leaf), leaf)
        torch.testing.assert_close(grad, torch.autograd.grad(step(leaf), leaf)[0])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("z_loss", -0.1, RuntimeError),
        ("z_loss", math.nan, RuntimeError),
        ("z_loss", "much", TypeError),
        ("logit_scale", math.inf, RuntimeError),
        ("logit_scale", None, TypeError),
        ("softcap", -2.5, RuntimeError),
        ("softcap", math.nan, RuntimeError),
        ("softcap", "thirty", TypeError),
        ("return_lse", "yes", TypeError),
    ],
)
def test_bad_values(name: str, value: Any, error: type[Exception]) -> None:
    logits, target = inputs(4)
    with pytest.raises(error, match=rf"{name} must be .*{value}"):
        softreg_ext.cross_entropy(logits, target, **{name: value})


@pytest.mark.parametrize("name", ["z_loss", "logit_scale", "softcap", "label_smoothing"])
def test_numbers_get_no_gradient(name: str) -> None:
    """Taken as numbers, tensors that require grad would be left without one."""
    logits, target = inputs(4)
    value = torch.tensor(0.5)
    softreg_ext.cross_entropy(logits, target, **{name: value})
    with pytest.raises(TypeError, match=f"{name} must be a float"):
        softreg_ext.cross_entropy(logits, target, **{name: torch.nn.Parameter(value)})
    with pytest.raises(TypeError, match=f"{name} must be a float"):
        torch.func.grad(lambda x: softreg_ext.cross_entropy(logits, target, **{name: x}))(value)
    with pytest.raises(TypeError, match=f"{name} must be a float"):
        softreg_ext.linear_cross_entropy(
            logits, torch.ones_like(logits), target % 4, **{name: torch.nn.Parameter(value)}
        )


def test_module() -> None:
    logits, target = inputs(40)
    options = {"z_loss": 0.1, "logit_scale": 0.3, "softcap": 2.0}
    loss = softreg_ext.CrossEntropyLoss(**options)(logits, target)
    torch.testing.assert_close(loss, composite(logits, target, **options)[0])
