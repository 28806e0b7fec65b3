"""A linear layer and its loss in one under autocast: as the two apart, in chunks too."""

from typing import Any

import pytest
import torch
from cases import DEVICE, random_source
from linear_cases import (
    CLASSES,
    HALF_TYPES,
    OPTIONS,
    ROWS,
    apart,
    assert_as_accurate,
    fused,
    is_in_chunks,
    make_inputs,
    peak_of_a_step,
    results,
)
from torch import Tensor
from torch.library import opcheck

from softreg_ext._extension import _C

OPS = torch.ops.softreg_ext
pytestmark = pytest.mark.usefixtures("small_chunks")


def make_rounded(lower: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Leaves in float32 that autocast does not round."""
    leaves, target = make_inputs(lower)
    return [leaf.detach().float().requires_grad_() for leaf in leaves], target


def check_under_autocast(
    leaves: list[Tensor],
    target: Tensor,
    lower: torch.dtype,
    weight: Tensor | None = None,
    **options: Any,
) -> None:
    """As accurate as the two apart, in roundings of the lower precision."""
    of_class = {} if weight is None else {"weight": weight}
    exact_of_class = {} if weight is None else {"weight": weight.double()}
    wide = [leaf.double() for leaf in leaves]
    exact = results(apart, wide, target, **exact_of_class, **options)
    with torch.autocast(DEVICE.type, lower):
        assert is_in_chunks(fused(leaves, target, **of_class, **options))
        ours = results(fused, leaves, target, **of_class, **options)
        theirs = results(apart, leaves, target, **of_class, **options)
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]
    assert ours[0].dtype == torch.float32
    assert_as_accurate((x.to(lower) for x in ours), (x.to(lower) for x in theirs), exact)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lower", HALF_TYPES, ids=str)
def test_labels(lower: torch.dtype, options: dict[str, Any]) -> None:
    leaves, target = make_rounded(lower)
    target[target == -100] = options.get("ignore_index", -100)
    check_under_autocast(leaves, target, lower, **options)
    check_under_autocast(leaves[:2], target, lower, **options)


@pytest.mark.parametrize("lower", HALF_TYPES, ids=str)
def test_probabilities(lower: torch.dtype) -> None:
    leaves, _ = make_rounded(lower)
    probabilities = torch.randn(len(leaves[0]), CLASSES, generator=random_source(1)).softmax(1)
    check_under_autocast(leaves, probabilities, lower, label_smoothing=0.1)


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_input_of_a_layer_before(input_dtype: torch.dtype) -> None:
    """It is in the lower precision already; class weights are in float32."""
    leaves, target = make_rounded(torch.bfloat16)
    leaves[0] = leaves[0].detach().to(input_dtype).requires_grad_()
    check_under_autocast(leaves, target, torch.bfloat16, torch.linspace(0.5, 2, CLASSES))
    with (
        torch.autocast(DEVICE.type, torch.bfloat16),
        pytest.raises(RuntimeError, match="linear_bias must have shape"),
    ):
        fused([*leaves[:2], leaves[2][:1]], target)


def test_all_logits_where_they_are_few() -> None:
    leaves, target = make_inputs(torch.float32)
    _C.set_chunk_bytes(1 << 20)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        ours, theirs = (results(function, leaves, target) for function in (fused, apart))
    torch.testing.assert_close(ours, theirs)


def test_other_types_are_refused() -> None:
    input, weight = torch.ones(ROWS, 4).int(), torch.ones(CLASSES, 4).int()
    for chunk_bytes in (1, 1 << 20):
        _C.set_chunk_bytes(chunk_bytes)
        with (
            torch.autocast(DEVICE.type, torch.bfloat16),
            pytest.raises(NotImplementedError, match="bfloat16 or float16, but got Int"),
        ):
            fused([input, weight], torch.zeros(ROWS).long())


def test_rounded_alike_one_row_at_a_time() -> None:
    """The loss of logits in the lower precision, whichever way they come."""
    leaves, target = make_inputs(torch.float32)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        together = fused(leaves, target, reduction="none")
        rows = [
            fused([row, *leaves[1:]], label) for row, label in zip(leaves[0], target, strict=True)
        ]
    alone = torch.stack(rows).nan_to_num()  # the mean of an ignored row
    # Sums in another order fall to the other side of a rounding now and then: of few logits.
    assert (together - alone).abs().median() < 1e-5


def test_float64_stays() -> None:
    leaves, target = make_inputs(torch.float64)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        torch.testing.assert_close(results(fused, leaves, target), results(apart, leaves, target))


def test_steps_with_a_scaled_loss() -> None:
    """Whatever upstream gradient was expected; float16 would lose what is not scaled."""
    leaves, target = make_rounded(torch.float16)
    wide = [leaf.double() for leaf in leaves]
    exact = torch.autograd.grad(apart(wide, target), wide)
    for scale in (1.0, 1024.0, 1024.0, 1024.0, 512.0):
        with torch.autocast(DEVICE.type, torch.float16):
            losses = [function(leaves, target) * scale for function in (fused, apart)]
        ours, theirs = ([x.half() for x in torch.autograd.grad(loss, leaves)] for loss in losses)
        assert_as_accurate(ours, theirs, [scale * x for x in exact])


def test_second_derivatives() -> None:
    leaves, target = make_rounded(torch.bfloat16)

    def second(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

    wide = [leaf.double() for leaf in leaves]
    exact = second(apart(wide, target), wide)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        losses = [function(leaves, target) for function in (fused, apart)]
    ours, theirs = ([x.bfloat16() for x in second(loss, leaves)] for loss in losses)
    assert_as_accurate(ours, theirs, exact)


def test_of_the_backward_pass_alone() -> None:
    leaves, target = make_inputs(torch.float32)
    expected = torch.autograd.grad(apart(leaves, target), leaves)
    for reduction in ("mean", "none"):
        for create_graph in (False, True):
            loss = fused(leaves, target, reduction=reduction)
            loss = loss if reduction == "mean" else loss.sum() / (target >= 0).sum()
            with torch.autocast(DEVICE.type, torch.bfloat16):
                found = torch.autograd.grad(loss, leaves, create_graph=create_graph)
            torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck() -> None:
    leaves, target = make_inputs(torch.bfloat16)
    options = (None, 1, -100, 0.1, 0.0, 1.0, None)
    opcheck(OPS.linear_cross_entropy_forward, (*leaves, target, *options, True, True))
    with torch.no_grad():
        loss, lse, state, total = OPS.linear_cross_entropy_forward(
            *leaves, target, *options, True, True
        )
    assert loss.dtype == torch.float32
    upstream = (torch.ones_like(loss), torch.ones_like(lse))
    saved = (*leaves, target, state, total, *options, True, [True, False, True])
    opcheck(OPS.linear_cross_entropy_backward, (*upstream, *saved))


@pytest.mark.filterwarnings("ignore")  # the tracers warn of their own insides
def test_compile() -> None:
    leaves, target = make_rounded(torch.bfloat16)

    def step(*leaves: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return fused(list(leaves), target)

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    both = [torch.autograd.grad(function(*leaves), leaves) for function in (compiled, step)]
    torch.testing.assert_close(*both)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the process is what grows")
def test_memory() -> None:
    """Nor as many in bfloat16: 131. Products in it have memory of their own on some processors."""
    _C.set_chunk_bytes(0)

    def loss(leaves: list[Tensor], target: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result: Tensor = fused(leaves, target)
        return result

    assert 20 <= peak_of_a_step(loss) <= 110
