"""What each process of test_sharded.py does: a loss of DTensors against that of one process."""

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import oracle
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import softreg_ext

Placements = tuple[Placement, ...]
PROCESSES = 4
TRANSFORMS: list[dict[str, Any]] = [{}, {"z_loss": 0.1, "logit_scale": 0.5, "softcap": 3.0}]


@cache
def mesh_of(dims: int) -> DeviceMesh:
    """Once in a process, as in any job: DTensor's caches do not tell equal ones apart."""
    return init_device_mesh("cpu", (PROCESSES,) if dims == 1 else (2, PROCESSES // 2))


def distributed(x: Tensor, mesh: DeviceMesh, placements: Placements) -> DTensor:
    """The same values, whatever the placements; a leaf."""
    parts = [mesh.size(i) for i, p in enumerate(placements) if p.is_partial()]
    whole = [Replicate() if p.is_partial() else p for p in placements]
    local = distribute_tensor(x, mesh, whole).to_local()
    for count in parts:
        local = local / count
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def make_labels(shape: Sequence[int], classes: int) -> Tensor:
    labels = torch.randint(classes, tuple(shape))
    if labels.numel() > 2:
        labels.view(-1)[2] = -100
    return labels


def gathered(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def results(function: Callable[..., Any], leaves: list[Tensor], **options: Any) -> list[Tensor]:
    """What is returned, and the gradients of something that depends on all of it."""
    found = function(*leaves, **options)
    found = list(found) if isinstance(found, tuple) else [found]
    total = sum((x.square().sum() for x in found), torch.zeros(()).to(gathered(found[0])))
    return [*found, *torch.autograd.grad(total, leaves)]


def compare(
    function: Callable[..., Any],
    tensors: list[Tensor],
    mesh: DeviceMesh,
    placements: Sequence[Placements],
    **options: Any,
) -> list[Tensor]:
    """Results of DTensors, which are those of one process; in float64."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    shards = [
        distributed(x, mesh, where).requires_grad_()
        for x, where in zip(tensors, placements, strict=True)
    ]
    expected, found = results(function, leaves, **options), results(function, shards, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, DTensor)
        assert ours.dtype == theirs.dtype
        close = {"rtol": 1e-12, "atol": 1e-13, "equal_nan": True}
        torch.testing.assert_close(gathered(ours), theirs, **close)
    for grad, shard in zip(found[-len(shards) :], shards, strict=True):
        assert grad.shape == shard.shape
    return found


def check_logits(shape: tuple[int, ...], mesh_dims: int, placements: Placements) -> None:
    torch.manual_seed(0)
    mesh, class_dim = mesh_of(mesh_dims), min(1, len(shape) - 1)
    logits = 3 * torch.randn(shape, dtype=torch.float64)
    classes = shape[class_dim]
    target = make_labels((*shape[:class_dim], *shape[class_dim + 1 :]), classes)
    weights = [None, torch.rand(classes, dtype=torch.float64)]
    reductions = ("none", "mean", "sum")
    for reduction, weight, beyond in itertools.product(reductions, weights, TRANSFORMS):
        options = {"target": target, "weight": weight, "reduction": reduction, **beyond}
        for return_lse in (False, True):
            found = compare(
                softreg_ext.cross_entropy,
                [logits],
                mesh,
                [placements],
                **options,
                return_lse=return_lse,
            )
            if reduction != "none":
                assert all(p.is_replicate() for p in found[0].placements)


def check_other_targets(mesh_dims: int, placements: Placements) -> None:
    """Smoothed labels and probabilities, which have a gradient; labels of other types."""
    torch.manual_seed(0)
    mesh = mesh_of(mesh_dims)
    logits = torch.randn(6, 11, 2, dtype=torch.float64)
    labels, weight = make_labels((6, 2), 11), torch.rand(11, dtype=torch.float64)
    loss = softreg_ext.cross_entropy
    for reduction in ("none", "mean", "sum"):
        smoothed = {"target": labels, "weight": weight, "label_smoothing": 0.1}
        compare(loss, [logits], mesh, [placements], reduction=reduction, **smoothed)
        probabilities = logits.detach().roll(1).softmax(1)
        rest = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction}
        compare(loss, [logits, probabilities], mesh, [placements, placements], **rest)
    for dtype in (torch.uint8, torch.int32):
        compare(loss, [logits], mesh, [placements], target=labels.abs().clamp(max=10).to(dtype))
    other = labels.masked_fill(labels == -100, 7)
    compare(loss, [logits], mesh, [placements], target=other, ignore_index=7)
    compare(loss, [logits], mesh, [placements], target=labels, weight=weight[None])


def check_distributed_targets(placements: Placements, on_target: Placements) -> None:
    """Targets that are DTensors too, wherever they are; a weight that is one."""
    torch.manual_seed(0)
    mesh = mesh_of(2)
    logits, labels = torch.randn(8, 8, dtype=torch.float64), make_labels((8,), 8)
    weight = distribute_tensor(torch.rand(8, dtype=torch.float64), mesh, [Replicate(), Shard(0)])
    expected = softreg_ext.cross_entropy(logits, labels, weight.full_tensor())
    target = distribute_tensor(labels, mesh, on_target)
    found = softreg_ext.cross_entropy(distributed(logits, mesh, placements), target, weight)
    torch.testing.assert_close(gathered(found), expected, rtol=1e-12, atol=0)
    module = softreg_ext.CrossEntropyLoss(weight.full_tensor(), reduction="sum")
    of_module = module(distributed(logits, mesh, placements), target)
    torch.testing.assert_close(gathered(of_module), module(logits, labels), rtol=1e-12, atol=0)


def check_bad_arguments(placements: Placements) -> None:
    """Refused by every process, as one process refuses them; none is left waiting."""
    mesh = mesh_of(2)
    logits, labels = torch.randn(4, 8), torch.zeros(4, dtype=torch.long)
    shards = distributed(logits, mesh, placements)
    bad: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "input has batch size 4", {"target": labels[:3]}),
        (RuntimeError, "label_smoothing", {"label_smoothing": 1.5}),
        (RuntimeError, "weight must have one entry", {"weight": torch.ones(7)}),
        (RuntimeError, "weight requires grad", {"weight": torch.ones(8).requires_grad_()}),
        (ValueError, "reduction must be", {"reduction": "total"}),
        (TypeError, "softcap must be a float", {"softcap": "high"}),
        (TypeError, "target must be a Tensor", {"target": [0, 1, 2, 3]}),
        (RuntimeError, "must be int64, int32, int16 or uint8", {"target": labels.bool()}),
    ]
    for kind, message, options in bad:
        given = {"target": labels, **options}
        for input in (logits, shards):
            with pytest.raises(kind, match=message):
                softreg_ext.cross_entropy(input, **given)
    assert softreg_ext.cross_entropy(shards, labels).to_local() > 0


def check_bad_label(label: int, placements: Placements) -> None:
    """Everybody has a plain target, and looks at all of it."""
    shards = distributed(torch.randn(4, 8), mesh_of(1), placements)
    labels = torch.tensor([0, label, 1, 2])
    with pytest.raises(IndexError, match=f"target {label} at row 1 is out of bounds for 8 classes"):
        softreg_ext.cross_entropy(shards, labels)
    everywhere = distribute_tensor(labels, mesh_of(1))
    if placements == (Shard(1),):
        with pytest.raises(IndexError, match=f"target {label} at row 1 of this process"):
            softreg_ext.cross_entropy(shards, everywhere)


def check_ignored_rows() -> None:
    """What is not a number in one is no other row's business."""
    logits = torch.randn(4, 8).double()
    logits[2] = torch.nan
    labels = torch.tensor([0, 1, -100, 2])
    shards = distributed(logits, mesh_of(1), (Shard(1),)).requires_grad_()
    loss = softreg_ext.cross_entropy(shards, labels, z_loss=0.1)
    (grad,) = torch.autograd.grad(loss, shards)
    kept = [0, 1, 3]
    expected = softreg_ext.cross_entropy(logits[kept], labels[kept], z_loss=0.1)
    torch.testing.assert_close(gathered(loss), expected, rtol=1e-12, atol=0)
    assert gathered(grad)[kept].isfinite().all()


def check_weight_gradient(placements: Placements) -> None:
    """There is one beside probabilities alone."""
    torch.manual_seed(0)
    mesh = mesh_of(2)
    logits, weight = torch.randn(8, 6).double(), torch.rand(6).double()
    target = torch.rand(8, 6).double()

    def loss(logits: Tensor, weight: Tensor, **options: Any) -> Any:
        return softreg_ext.cross_entropy(logits, target, weight, **options)

    for reduction in ("none", "mean"):
        where = [placements, (Replicate(), Replicate())]
        compare(loss, [logits, weight], mesh, where, reduction=reduction)


def check_other_mesh() -> None:
    shards = distributed(torch.randn(4, 8), mesh_of(1), (Shard(0),))
    elsewhere = distribute_tensor(torch.zeros(4, dtype=torch.long), mesh_of(2))
    with pytest.raises(RuntimeError, match="all DTensors must be on one mesh"):
        softreg_ext.cross_entropy(shards, elsewhere)
    layer = distributed(torch.randn(8, 8), mesh_of(2), (Shard(0), Replicate()))
    with pytest.raises(RuntimeError, match=r"input is on .* but linear_weight on"):
        softreg_ext.linear_cross_entropy(shards, layer, torch.zeros(4, dtype=torch.long))


def check_changes_are_noticed(placements: Placements) -> None:
    """In place, between the passes, of whatever the backward pass reads."""
    mesh = mesh_of(2)
    logits, labels = torch.randn(8, 8).double(), torch.arange(8)
    on_layer = tuple(Shard(0) if p == Shard(1) else Replicate() for p in placements)
    on_rows = tuple(p if p == Shard(0) else Replicate() for p in placements)

    def loss_and_what_it_reads() -> list[tuple[Tensor, list[DTensor]]]:
        found: list[tuple[Tensor, list[DTensor]]] = []
        target = distributed(labels, mesh, on_rows)
        input = distributed(logits, mesh, placements).requires_grad_() * 1
        found.append((softreg_ext.cross_entropy(input, target), [input, target]))
        rows = distributed(logits, mesh, on_rows)
        layer = distributed(logits, mesh, on_layer).requires_grad_() * 1
        pair = softreg_ext.linear_cross_entropy(rows, layer, target, return_lse=True)
        found.append((pair[0] + pair[1].sum(), [rows, layer, target]))
        return found

    for number, (_, all_read) in enumerate(loss_and_what_it_reads()):
        for place in range(len(all_read)):
            loss, read = loss_and_what_it_reads()[number]
            with torch.no_grad():
                read[place].zero_()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def check_plain_input() -> None:
    """It does not say which rows it has, as FSDP's, whose layers look like those here."""
    layer = distributed(torch.randn(8, 6), mesh_of(1), (Shard(0),))
    for on_layer in (layer, layer.redistribute(mesh_of(1), (Replicate(),))):
        with pytest.raises(RuntimeError, match="input is a plain tensor, but linear_weight is a D"):
            softreg_ext.linear_cross_entropy(torch.randn(4, 6), on_layer, torch.arange(4))


def check_offloaded() -> None:
    """What hooks of the caller get to keep are tensors with data."""
    input, target = distributed(torch.randn(4, 8), mesh_of(1), (Shard(0),)), torch.arange(4)
    layer = distributed(torch.randn(8, 8), mesh_of(1), (Shard(0),))
    for function, given in (
        (softreg_ext.cross_entropy, [input]),
        (softreg_ext.linear_cross_entropy, [input, layer]),
    ):
        leaves = [x.detach().requires_grad_() for x in given]
        expected = torch.autograd.grad(function(*leaves, target), leaves)
        with torch.autograd.graph.save_on_cpu():
            loss = function(*leaves, target)
        for ours, theirs in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
            assert torch.equal(gathered(ours), gathered(theirs))


def check_second_derivatives(placements: Placements) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 8).double(), torch.arange(4)

    def second(x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(softreg_ext.cross_entropy(x, labels), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    shards = distributed(logits, mesh_of(1), placements).requires_grad_()
    if placements == (Shard(1),):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            second(shards)
        return
    expected = second(logits.clone().requires_grad_())
    torch.testing.assert_close(gathered(second(shards)), expected, rtol=1e-12, atol=1e-13)


def check_accuracy(dtype: torch.dtype, placements: Placements) -> None:
    """The rule for one process holds for several."""
    mesh = mesh_of(2)
    draws: list[list[oracle.Draw]] = []
    for seed, scale in itertools.product(range(4), (1, 10)):
        torch.manual_seed(seed)
        logits = (scale * torch.randn(64, 300)).to(dtype)
        target = make_labels((64,), 300)
        shards = distributed(logits, mesh, placements).requires_grad_()
        loss = softreg_ext.cross_entropy(shards, target)
        (grad,) = torch.autograd.grad(loss, shards)
        rows = softreg_ext.cross_entropy(shards, target, reduction="none")
        leaf = logits.requires_grad_()
        theirs = F.cross_entropy(leaf, target)
        (their_grad,) = torch.autograd.grad(theirs, leaf)
        their_rows = F.cross_entropy(leaf, target, reduction="none")
        exact = oracle.cross_entropy(logits, target)
        exact_rows = oracle.cross_entropy(logits, target, reduction="none").loss
        unit = 1 / float((target >= 0).sum())
        draws.append(
            [
                oracle.Draw(gathered(loss), theirs, exact.loss),
                oracle.Draw(gathered(grad), their_grad, exact.grad, unit),
                oracle.Draw(gathered(rows), their_rows, exact_rows),
            ]
        )
        # Rounded once, so that what is lost is what the dtype loses.
        if dtype.itemsize == 2:
            lost = (gathered(rows).double() - torch.tensor(exact_rows.astype(float))).abs()
            assert (lost <= torch.finfo(dtype).eps / 2 * 1.01 * gathered(rows).double().abs()).all()
    for of_one in zip(*draws, strict=True):
        oracle.assert_as_accurate(*of_one)


def check_extremes(placements: Placements) -> None:
    """Logits of any size, and what is infinite or not a number, as in one process."""
    mesh = mesh_of(1)
    inf = torch.inf
    rows = torch.tensor(
        [
            [2.0**24] * 8,
            [1e30, -1e30, 0, 1, 2, 3, 4, 5],
            [-inf, -inf, 0, 1, 2, 3, 4, 5],  # a process has nothing but these, and the label
            [-inf, 0, -inf, -inf, -inf, -inf, -inf, -inf],
            [-inf] * 8,
            [inf, 0, 0, 0, 0, 0, 0, 0],
            [torch.nan, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 1e4],
        ]
    )
    target = torch.tensor([5, 0, 1, 1, 3, 0, 7, 0])
    far_down = torch.tensor([[-200.0, -300, -inf, -inf, -200, -inf, -inf, -inf]])
    few = torch.tensor([[-200.0, -300, -200, -210, -200]])  # the last process has none
    for x in (far_down, few):
        shards = distributed(x, mesh, placements).requires_grad_()
        found = softreg_ext.cross_entropy(shards, torch.tensor([0]))
        expected = F.cross_entropy(x, torch.tensor([0]))
        torch.testing.assert_close(gathered(found), expected)
        (grad,) = torch.autograd.grad(found, shards)
        assert gathered(grad).isfinite().all()
    for function in (softreg_ext.cross_entropy, F.cross_entropy):
        leaf = rows.clone().requires_grad_()
        shards = distributed(rows, mesh, placements).requires_grad_()
        expected = function(leaf, target, reduction="none")
        found = softreg_ext.cross_entropy(shards, target, reduction="none")
        torch.testing.assert_close(gathered(found), expected, equal_nan=True)
        pairs = ((found.sum(), shards), (expected.sum(), leaf))
        grad, expected_grad = (torch.autograd.grad(loss, x)[0] for loss, x in pairs)
        torch.testing.assert_close(gathered(grad), expected_grad, equal_nan=True)


def check_layer(
    mesh_dims: int, on_input: Placements, on_layer: Placements, dims: tuple[int, ...] = ()
) -> None:
    torch.manual_seed(0)
    mesh = mesh_of(mesh_dims)
    input = torch.randn(9, 5, dtype=torch.float64)
    layer = torch.randn(11, *dims, 5, dtype=torch.float64)
    bias = torch.randn(11, *dims, dtype=torch.float64)
    target = make_labels((9, *dims), 11)
    on_bias = tuple(Replicate() if p == Shard(len(dims) + 1) else p for p in on_layer)

    def loss(input: Tensor, layer: Tensor, bias: Tensor | None = None, **options: Any) -> Any:
        return softreg_ext.linear_cross_entropy(input, layer, linear_bias=bias, **options)

    weight = torch.rand(11, dtype=torch.float64)
    cases = [
        {"reduction": "none", "weight": weight},
        {"reduction": "mean", "return_lse": True},
        {"reduction": "sum", **TRANSFORMS[1]},
        {"reduction": "mean", "weight": weight, "label_smoothing": 0.1},
    ]
    for options in cases:
        compare(loss, [input, layer], mesh, [on_input, on_layer], target=target, **options)
        leaves, where = [input, layer, bias], [on_input, on_layer, on_bias]
        compare(loss, leaves, mesh, where, target=target, **options)


def check_autocast(placements: Placements) -> None:
    """The layer in bfloat16, the loss in float32, as in one process."""
    mesh = mesh_of(2)
    torch.manual_seed(0)
    input, layer, target = torch.randn(8, 6), torch.randn(12, 6), make_labels((8,), 12)
    on_layer = tuple(Shard(0) if p == Shard(1) else Replicate() for p in placements)
    on_input = tuple(p if p == Shard(0) else Replicate() for p in placements)
    bias, weight = torch.randn(12), torch.rand(12)
    tensors, where = [input, layer, bias], [on_input, on_layer, on_layer]
    leaves = [x.requires_grad_() for x in tensors]
    shards = [
        distributed(x.detach(), mesh, there).requires_grad_()
        for x, there in zip(tensors, where, strict=True)
    ]

    def apart(input: Tensor, layer: Tensor, bias: Tensor) -> Tensor:
        return softreg_ext.cross_entropy(F.linear(input, layer, bias), target, weight)

    def fused(input: Tensor, layer: Tensor, bias: Tensor) -> Tensor:
        return softreg_ext.linear_cross_entropy(
            input, layer, target, linear_bias=bias, weight=weight
        )

    def of_other_types(input: Tensor, layer: Tensor, bias: Tensor) -> Tensor:
        return fused(input.bfloat16(), layer, bias)

    def of_half_logits(input: Tensor, layer: Tensor, bias: Tensor) -> Tensor:
        return softreg_ext.cross_entropy(F.linear(input, layer, bias).bfloat16(), target, weight)

    for loss in (apart, fused, of_other_types, of_half_logits):
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = loss(*leaves), loss(*shards)
        assert expected.dtype == found.dtype == torch.float32
        grads = torch.autograd.grad(found, shards)
        expected_grads = torch.autograd.grad(expected, leaves)
        torch.testing.assert_close(gathered(found), expected)
        for ours, theirs in zip(grads, expected_grads, strict=True):
            # sums over other rows or classes in bfloat16
            torch.testing.assert_close(gathered(ours), theirs, rtol=2**-6, atol=2**-8)

    # float64 is left alone
    wide, weight = [x.detach().double() for x in tensors], weight.double()
    expected = fused(*wide)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(*(distributed(x, mesh, there) for x, there in zip(wide, where, strict=True)))
    torch.testing.assert_close(gathered(found), expected, rtol=1e-12, atol=0)


def check_compile(placements: Placements) -> None:
    mesh = mesh_of(2)
    torch.manual_seed(0)
    logits, target = torch.randn(8, 12).double(), make_labels((8,), 12)
    compiled = torch.compile(softreg_ext.cross_entropy, fullgraph=True, backend="aot_eager")
    for reduction in ("mean", "none"):
        compare(compiled, [logits], mesh, [placements], target=target, reduction=reduction)
    shards = distributed(logits, mesh, placements)
    bad: list[dict[str, Any]] = [{"z_loss": -1.0}, {"weight": torch.ones(7)}]
    for options in [*bad, {"target": target[:3]}, {"reduction": "total"}]:
        with pytest.raises(Exception, match=f"{next(iter(options))}"):
            compiled(shards, **{"target": target, **options})
    dynamic = torch.compile(
        softreg_ext.cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True
    )
    torch.testing.assert_close(
        gathered(dynamic(shards, target)),
        softreg_ext.cross_entropy(logits, target),
        rtol=1e-12,
        atol=0,
    )


def check_what_travels(placements: Placements, gathered: int, reduced: int) -> None:
    """Never the logits: a collective for rows whose classes are shared out, one for the sum."""
    mesh = mesh_of(2)
    shards = distributed(torch.randn(8, 12), mesh, placements).requires_grad_()
    target = make_labels((8,), 12)
    with CommDebugMode() as traffic:
        softreg_ext.cross_entropy(shards, target).backward()
    counts = {str(op): count for op, count in traffic.get_comm_counts().items()}
    expected = {
        "c10d_functional.all_gather_into_tensor": gathered,
        "c10d_functional.all_reduce": reduced,
    }
    assert counts == {op: count for op, count in expected.items() if count}, counts


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 12)).double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4 * PROCESSES, 6).double(), torch.randint(12, (4 * PROCESSES,))


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    loss.backward()
    return [gathered(x.grad) for x in model.parameters() if x.grad is not None]


def check_data_parallel() -> None:
    """Each process has rows of its own, the gradients are averaged: as of all rows in one."""
    rank, model = dist.get_rank(), make_model()
    input, target = batch()
    loss = softreg_ext.CrossEntropyLoss()
    expected = gradients(model, loss(model(input), target))
    mine = slice(4 * rank, 4 * rank + 4)
    ddp = DistributedDataParallel(make_model())
    fsdp = fully_shard(make_model(), mesh=mesh_of(1))
    for found in (ddp, fsdp):
        grads = gradients(found, loss(found(input[mine]), target[mine]))
        torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-13)

    # The layer inside the loss, whose parameters are gathered for it.
    def make_loss() -> softreg_ext.LinearCrossEntropyLoss:
        torch.manual_seed(2)
        return softreg_ext.LinearCrossEntropyLoss(6, 12, bias=True, dtype=torch.float64)

    whole_loss, shards = make_loss(), fully_shard(make_loss(), mesh=mesh_of(1))
    expected = gradients(whole_loss, whole_loss(input, target))
    grads = gradients(shards, shards(input[mine], target[mine]))
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-13)


def check_tensor_parallel() -> None:
    """The last layer's classes are shared out: its output, and what is done with it in one op."""
    input, target = batch()
    model = make_model()
    expected = gradients(model, softreg_ext.cross_entropy(model(input), target))
    plan = {
        "0": ColwiseParallel(),
        "2": ColwiseParallel(
            input_layouts=Shard(-1), output_layouts=Shard(-1), use_local_output=False
        ),
    }
    parallel = parallelize_module(make_model(), mesh_of(1), plan)
    loss = softreg_ext.cross_entropy(parallel(input), target)
    assert_equal = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)
    assert_equal(gradients(parallel, loss), expected)

    parallel.zero_grad()
    hidden, last = parallel[:2](input), parallel[2]
    hidden = DTensor.from_local(hidden, mesh_of(1), (Shard(1),))
    loss = softreg_ext.linear_cross_entropy(hidden, last.weight, target, linear_bias=last.bias)
    assert_equal(gradients(parallel, loss), expected)
