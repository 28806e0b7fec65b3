"""A linear layer and its loss in one: as the two apart, with some of the logits at a time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, DTYPES, random_source
from linear_cases import (
    CLASSES,
    HALF_TYPES,
    OPTIONS,
    ROWS,
    apart,
    check,
    fused,
    is_in_chunks,
    make_inputs,
    peak_of_a_step,
    results,
)
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.profiler import ProfilerActivity, profile

import softreg_ext
from softreg_ext._extension import _C

OPS = torch.ops.softreg_ext
pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels(dtype: torch.dtype, bias: bool, options: dict[str, Any]) -> None:
    leaves, target = make_inputs(dtype, bias=bias)
    target[target == -100] = options.get("ignore_index", -100)
    weight = torch.linspace(0.5, 2, CLASSES).to(dtype)
    check(leaves, target, **options)
    check(leaves, target, weight, **options)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities(dtype: torch.dtype, options: dict[str, Any]) -> None:
    leaves, _ = make_inputs(dtype)
    probabilities = torch.randn(ROWS, CLASSES, generator=random_source(1)).softmax(1)
    check(leaves, probabilities.to(dtype), **options)
    check(leaves, probabilities.to(dtype), torch.linspace(0.5, 2, CLASSES).to(dtype), **options)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_k_dimensional(dtype: torch.dtype, options: dict[str, Any]) -> None:
    leaves, target = make_inputs(dtype, dims=(2, 3))
    target[target == -100] = options.get("ignore_index", -100)
    check(leaves, target, **options)


def test_weight_of_another_shape() -> None:
    leaves, target = make_inputs(dims=(2, 3))
    weight = torch.rand(1, CLASSES, dtype=torch.float64, generator=random_source(1))
    check(leaves, target, weight)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse_probabilities(layout: torch.layout) -> None:
    leaves, _ = make_inputs()
    probabilities = torch.eye(CLASSES, dtype=torch.float64)[:ROWS]
    found = results(fused, leaves, probabilities.to_sparse(layout=layout))
    torch.testing.assert_close(found, results(fused, leaves, probabilities))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_as_torch_where_it_has_it(reduction: str) -> None:
    leaves, target = make_inputs()
    torchs = results(apart, leaves, target, loss=F.cross_entropy, reduction=reduction)
    torch.testing.assert_close(results(fused, leaves, target, reduction=reduction), torchs)
    if hasattr(F, "linear_cross_entropy"):
        one = F.linear_cross_entropy(
            leaves[0], leaves[1], target, linear_bias=leaves[2], reduction=reduction
        )
        torch.testing.assert_close(fused(leaves, target, reduction=reduction), one)


def test_lse() -> None:
    leaves, target = make_inputs()
    upstream = torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    for reduction in ("none", "mean"):
        both = []
        for function in (fused, apart):
            loss, lse = function(leaves, target, reduction=reduction, return_lse=True)
            total = loss.sum() + (lse * upstream).sum()
            both.append([loss, lse, *torch.autograd.grad(total, leaves)])
        torch.testing.assert_close(*both)
        alone, expected = (
            torch.autograd.grad(
                function(leaves, target, reduction=reduction, return_lse=True)[1].sum(), leaves
            )
            for function in (fused, apart)
        )
        torch.testing.assert_close(alone, expected)


def test_what_is_in_chunks() -> None:
    leaves, target = make_inputs()
    assert is_in_chunks(fused(leaves, target))
    assert not is_in_chunks(fused([leaf[:3] for leaf in leaves[:1]] + leaves[1:], target[:3]))
    _C.set_chunk_bytes(0)
    assert not is_in_chunks(fused(leaves, target))
    for rows, expected in ((16, DEVICE.type == "cpu"), (800, True)):
        weight = torch.zeros(100_000, 1, requires_grad=True)
        labels = torch.zeros(rows).long()
        loss = softreg_ext.linear_cross_entropy(torch.zeros(rows, 1), weight, labels)
        assert is_in_chunks(loss) == expected


def chunks_of(leaves: list[Tensor], target: Tensor) -> int:
    """How many a step takes its logits in."""
    _C.set_chunk_bytes(1500)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        fused(leaves, target).backward()
    return sum(event.name == "softreg_ext::cross_entropy_forward" for event in profiled.events())


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_one_chunk_of_half_types_where_sums_would_take_as_much(dtype: torch.dtype) -> None:
    """A sum of gradients in float32 is there for several chunks alone."""
    if dtype == torch.float16 and DEVICE.type != "cpu":
        pytest.skip("on a GPU no gradients of float16 are computed with the loss")
    leaves, target = make_inputs(dtype, bias=False)
    bytes_of_logits = ROWS * CLASSES * 2
    assert 1500 + leaves[1].numel() * 4 < bytes_of_logits
    assert chunks_of(leaves, target) == 3
    wide = [torch.cat([leaf, leaf], 1).detach().requires_grad_() for leaf in leaves]
    assert 1500 + wide[1].numel() * 4 >= bytes_of_logits
    assert chunks_of(wide, target) == 1
    assert chunks_of([wide[0], wide[1].detach()], target) == 3
    assert chunks_of([leaf.detach().float().requires_grad_() for leaf in wide], target) > 3


@pytest.mark.parametrize("factors", [[1, 1, 1], [0.5, 0.5, 0.5, 1, 0.5], [3, 1, 4, 1, 5]], ids=str)
def test_upstream_gradients_in_turns(factors: list[float]) -> None:
    """Whatever gradient was expected, and computed in the forward pass."""
    leaves, target = make_inputs(torch.float32)
    expected = torch.autograd.grad(apart(leaves, target), leaves)
    for factor in factors:
        loss = fused(leaves, target)
        for gradients in (
            torch.autograd.grad(loss * factor, leaves, retain_graph=True),
            torch.autograd.grad(loss * factor, leaves, retain_graph=True),
        ):
            torch.testing.assert_close(gradients, tuple(factor * x for x in expected))
        (alone,) = torch.autograd.grad(loss, leaves[1])
        torch.testing.assert_close(alone, expected[1])


def is_early(leaves: list[Tensor], target: Tensor) -> tuple[Tensor, bool]:
    """A loss, and whether its gradients were computed with it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        loss = fused(leaves, target)
    return loss, any("backward" in event.key for event in profiled.key_averages())


def step(leaves: list[Tensor], target: Tensor, factor: float = 1.0) -> bool:
    loss, early = is_early(leaves, target)
    torch.autograd.grad(loss * factor, leaves)
    return early


def train(leaves: list[Tensor], target: Tensor) -> None:
    """Whatever came before is forgotten: upstream gradients are 1."""
    for _ in range(100):
        if all(step(leaves, target) for _ in range(3)):
            return
    raise AssertionError("no guess comes after 300 steps alike")


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only a host sees an upstream gradient at once")
def test_gradients_are_computed_with_the_loss() -> None:
    leaves, target = make_inputs(torch.float32)
    train(leaves, target)
    assert not is_early([leaf.detach() for leaf in leaves], target)[1]
    assert [step(leaves, target, 0.5) for _ in range(3)] == [True] * 3
    # Nobody comes for two of them: no more, until backward passes come again.
    unused = [is_early(leaves, target)[1] for _ in range(3)]
    assert unused == [True, True, False]
    assert [step(leaves, target, 0.5) for _ in range(3)] == [False, True, True]


def test_same_bits_twice_and_nothing_written() -> None:
    leaves, target = make_inputs(torch.bfloat16)
    before = [leaf.detach().clone() for leaf in leaves]
    first = results(fused, leaves, target)
    for result, again in zip(first, results(fused, leaves, target), strict=True):
        assert torch.equal(result, again)
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))


def test_only_what_is_wanted() -> None:
    leaves, target = make_inputs()
    expected = torch.autograd.grad(apart(leaves, target), leaves)
    for i in range(3):
        some = [leaf.detach().requires_grad_(i == k) for k, leaf in enumerate(leaves)]
        (alone,) = torch.autograd.grad(fused(some, target), some[i])
        torch.testing.assert_close(alone, expected[i])
    with torch.no_grad():
        loss = fused(leaves, target)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, apart(leaves, target).detach())


def test_an_input_changed_in_place_is_noticed() -> None:
    leaves, target = make_inputs()
    doubled = leaves[0] * 2
    loss = fused([doubled, *leaves[1:]], target)
    with torch.no_grad():
        doubled.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options: dict[str, Any]) -> None:
    leaves, target = make_inputs()
    target[target == -100] = options.get("ignore_index", -100)
    _C.set_chunk_bytes(400)

    def function(*args: Tensor) -> Tensor:
        return fused(list(args), target[::6], **options)

    some = [leaves[0].detach()[::6].requires_grad_(), *leaves[1:]]
    assert is_in_chunks(function(*some))
    assert gradcheck(function, some, fast_mode=True, check_batched_grad=True)
    assert gradcheck(function, some, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(function, some, fast_mode=True)


def test_recorded_gradients_are_the_fused_ones() -> None:
    leaves, target = make_inputs()
    if DEVICE.type == "cpu":
        train(leaves, target)
    loss = fused(leaves, target)
    recorded = torch.autograd.grad(loss, leaves, create_graph=True)
    assert all(gradient.requires_grad for gradient in recorded)
    torch.testing.assert_close(recorded, torch.autograd.grad(apart(leaves, target), leaves))


def test_transforms() -> None:
    leaves, target = make_inputs()

    def loss(input: Tensor, function: Any = fused) -> Any:
        return function([input, *leaves[1:]], target)

    input = leaves[0].detach()
    torch.testing.assert_close(grad(loss)(input), grad(loss)(input, apart))
    several = torch.stack([input, 2 * input])
    torch.testing.assert_close(
        vmap(grad(loss))(several), torch.stack([grad(loss)(x, apart) for x in several])
    )
    torch.testing.assert_close(
        jvp(loss, (input,), (input,)), jvp(lambda x: loss(x, apart), (input,), (input,))
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_vmap(options: dict[str, Any]) -> None:
    """One call for the batch, not one an item."""
    leaves, target = make_inputs()
    target[target == -100] = options.get("ignore_index", -100)
    several = [torch.stack([leaf, -leaf]).detach() for leaf in leaves]
    targets = torch.stack([target, target.flip(0)])

    def loss(leaves: list[Tensor], target: Tensor, function: Any = fused) -> Any:
        return function(leaves, target, **options)

    one_by_one = [
        loss([leaf[i] for leaf in several], targets[i], apart) for i in range(len(targets))
    ]
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        at_once = vmap(loss)(several, targets)
    torch.testing.assert_close(at_once, torch.stack(one_by_one))
    of_op = [call for call in calls.key_averages() if call.key.endswith("linear_cross_entropy")]
    assert [call.count for call in of_op] == [1]


IN_GRAPHS = {  # dtype, options, and whether the gradients are computed with the loss
    "mean": (torch.float32, {"label_smoothing": 0.1}, True),
    "sum": (torch.bfloat16, {"reduction": "sum", "ignore_index": 3}, True),
    "float16": (torch.float16, {}, False),
    "losses of rows": (torch.float32, {"reduction": "none"}, False),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("dtype", "options", "early"), IN_GRAPHS.values(), ids=IN_GRAPHS)
@pytest.mark.filterwarnings("ignore")  # the tracers warn of their own insides
def test_compile(dtype: torch.dtype, options: dict[str, Any], early: bool, dynamic: bool) -> None:
    leaves, target = make_inputs(dtype)
    target = target.where(target != -100, options.get("ignore_index", -100))
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph

    def step(input: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return 4 * fused([input, weight, bias], target, **options).sum()

    torch._dynamo.reset()
    partition = min_cut_rematerialization_partition  # what inductor has
    aot = aot_autograd(fw_compiler=backend, bw_compiler=backend, partition_fn=partition)
    compiled = torch.compile(step, backend=aot, fullgraph=True, dynamic=dynamic)
    for rows in (ROWS, ROWS - 5):
        some = [leaves[0].detach()[:rows].requires_grad_(), *leaves[1:]]
        both = [
            [loss.detach(), *torch.autograd.grad(loss, some)]
            for loss in (compiled(*some, target[:rows]), step(*some, target[:rows]))
        ]
        torch.testing.assert_close(*both)
    assert "linear_cross_entropy_forward" in graphs[0]
    assert ("linear_cross_entropy_forward_with_gradient" in graphs[0]) == early
    assert ("linear_cross_entropy_backward" in graphs[1]) == (not early)


def test_no_gradients_in_a_graph_without_them() -> None:
    leaves, target = make_inputs(torch.float32)

    def graph() -> str:
        return make_fx(lambda *leaves: fused(leaves[:3], leaves[3]))(*leaves, target).code

    assert "linear_cross_entropy_forward_with_gradient" in graph()
    with torch.no_grad():
        assert "linear_cross_entropy_forward_with_gradient" not in graph()


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck(reduction: int) -> None:
    leaves, target = make_inputs(torch.float32)
    options = (None, reduction, -100, 0.1, 0.0, 1.0, None)
    arguments = (*leaves, target, *options, True, False)
    opcheck(OPS.linear_cross_entropy_forward, arguments)
    with torch.no_grad():
        if reduction != 0:
            with_gradient = (*arguments, 0.5, [True, False, True])
            opcheck(OPS.linear_cross_entropy_forward_with_gradient, with_gradient)
        loss, lse, state, total_weight = OPS.linear_cross_entropy_forward(*arguments)
    upstream = (torch.ones_like(loss), torch.ones_like(lse))
    saved = (*leaves, target, state, total_weight, *options, False, [True, False, True])
    opcheck(OPS.linear_cross_entropy_backward, (*upstream, *saved))


def test_float16_means_of_large_losses() -> None:
    leaves, target = make_inputs(torch.float16)
    weight = {"weight": torch.full((CLASSES,), 3000.0).half()}
    table: list[dict[str, Any]] = [
        weight,
        {"z_loss": 50.0},
        {**weight, "z_loss": 50.0},
        {**weight, "label_smoothing": 0.1},
    ]
    for options in table:
        loss = fused(leaves, target, **options)
        assert loss.isfinite()
        torch.testing.assert_close(loss, apart(leaves, target, **options))


def test_means_of_rows_that_weigh_nothing() -> None:
    """In a chunk where none weighs anything, smoothing and the z-loss count all the same."""
    leaves, target = make_inputs()
    target[:20] = 0
    weight = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
    weight[0] = 0
    for options in ({"label_smoothing": 0.1}, {"z_loss": 0.1}, {}):
        ours = results(fused, leaves, target, weight=weight, **options)
        torch.testing.assert_close(ours, results(apart, leaves, target, weight=weight, **options))


def test_a_guess_beyond_the_dtype() -> None:
    for dtype in (torch.float64, torch.float32, torch.float16):
        leaves, target = make_inputs(dtype)
        for _ in range(3):
            check(leaves, target)
        leaves, target = make_inputs(torch.float64)
        for _ in range(3):
            torch.autograd.grad(fused(leaves, target) * 1e300, leaves)


def test_compiled_autograd() -> None:
    leaves, target = make_inputs(torch.float32)
    expected = torch.autograd.grad(apart(leaves, target), leaves)
    for _ in range(3):
        loss = fused(leaves, target)
        with compiled_autograd._enable(torch.compile(backend="eager")):
            found = torch.autograd.grad(loss, leaves)
        torch.testing.assert_close(found, expected)


def test_one_row_and_none() -> None:
    leaves, target = make_inputs()
    one = [leaves[0].detach()[0].requires_grad_(), *leaves[1:]]
    torch.testing.assert_close(results(fused, one, target[0]), results(apart, one, target[0]))
    empty = [leaves[0].detach()[:0].requires_grad_(), *leaves[1:]]
    for function in (fused, apart):
        loss, *gradients = results(function, empty, target[:0], reduction="sum")
        assert loss == 0
        assert all(not gradient.any() for gradient in gradients)
    options = (None, 2, -100, 0.0, 0.0, 1.0, None, False, False)
    assert OPS.linear_cross_entropy_forward(*empty, target[:0], *options)[0] == 0


def test_meta_tensors() -> None:
    input, weight, target = (
        torch.zeros(size, device="meta", dtype=dtype)
        for size, dtype in [((3, 4), None), ((5, 4), None), (3, torch.long)]
    )
    loss = softreg_ext.linear_cross_entropy(input, weight, target, reduction="none")
    assert loss.is_meta
    assert loss.shape == (3,)


def test_all_rows_ignored() -> None:
    leaves, target = make_inputs()
    loss, *gradients = results(fused, leaves, torch.full_like(target, -100))
    assert loss.isnan()
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the process is what grows")
def test_memory() -> None:
    """All logits, and as many of their gradient, are not there at a time."""
    _C.set_chunk_bytes(0)
    assert 40 <= peak_of_a_step(fused) <= 64
