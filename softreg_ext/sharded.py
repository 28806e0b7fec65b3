"""The losses of DTensors: rows, classes or both are shared out over processes."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from . import functional, linear
from .sharded_layout import CLASSES, ClassShard, Layout
from .sharded_rows import IGNORED, Layer, Logits, Part, RowsOfShard


def _is_autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does, which leaves float64 alone."""
    return x if x.dtype == torch.float64 else x.to(dtype)


def _refuse_as_one_process(function: Any, *arguments: Any, **options: Any) -> None:
    """Runs the loss on tensors without data, for its errors: all processes raise the same ones.

    They come before any process waits for another. Labels have no values there.
    """
    is_autocast = _is_autocast(arguments[0])

    def without_data(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        dtype = x.dtype
        if is_autocast and x.is_floating_point() and dtype != torch.float64:
            dtype = torch.float32
        found = torch.empty(x.shape, dtype=dtype, device="meta")
        return found if torch.compiler.is_compiling() else found.requires_grad_(x.requires_grad)

    named = {name: without_data(x) for name, x in options.items()}
    if torch.compiler.is_compiling():
        function(*map(without_data, arguments), **named)
        return
    # not by the caller's hooks, which may look for data in what is saved
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        function(*map(without_data, arguments), **named)


class _OfUnchanged(torch.autograd.Function):
    """A result of DTensors, whose backward pass is an error where they were changed in place.

    Of that the local tensors, which are what losses keep, know nothing.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, *used: Tensor) -> Tensor:
        ctx.save_for_backward(*used)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *(None for _ in ctx.saved_tensors)


def _noticing_changes(result: Any, layout: Layout) -> Any:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return result
    if isinstance(result, tuple):
        return tuple(_noticing_changes(x, layout) for x in result)
    return _OfUnchanged.apply(result, *layout.used)


def _sharded_dims(x: Tensor, mesh: DeviceMesh) -> list[int | None]:
    """The dimension of `x` that each one of the mesh shares out; those of sums are added up."""

    def sharded_dim(placement: Placement) -> int | None:
        if type(placement) is Shard:
            for dim in range(x.dim()):  # constants to a tracer, where placement.dim is a symbol
                if placement.dim in (dim, dim - x.dim()):
                    return dim
        return None

    if not isinstance(x, DTensor):
        return [None] * mesh.ndim
    return [sharded_dim(placement) for placement in x.placements]


def _out_of_range(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    return ((labels < 0) | (labels >= classes)) & (labels != ignore_index)


def _check_labels(labels: Tensor, classes: int, ignore_index: int, of_process: str) -> None:
    """On a CPU; a GPU's kernels stop at bad ones, and so do compiled ones.

    Raises:
        IndexError: one is out of range.
    """
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    is_bad = _out_of_range(labels, classes, ignore_index)
    if is_bad.any():
        row = int(is_bad.flatten().nonzero()[0])
        raise IndexError(
            f"cross_entropy: target {int(labels.flatten()[row])} at row {row}{of_process} is "
            f"out of bounds for {classes} classes (ignore_index is {ignore_index})"
        )


def _row_weights(labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What each row's loss is multiplied by, and its part of what the mean divides by."""
    counts = labels != ignore_index
    if weight is None:
        return counts.double()
    of_labels = weight[labels.clamp(0, len(weight) - 1)].double()
    return of_labels.masked_fill(~counts, 0)


class _Loss:
    """What both losses do once it is known which rows and classes of the logits are here."""

    def __init__(
        self,
        layout: Layout,
        shape: tuple[int, ...],
        target: Tensor,
        weight: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        """`shape` is that of all logits; `options` are those of `functional.cross_entropy`."""
        self.layout, self.options = layout, options
        class_dim = _class_dim(shape)
        self.classes = shape[class_dim]
        self.row_shape = (*shape[:class_dim], *shape[class_dim + 1 :])
        if weight is not None:
            weight = layout.local(weight, layout.everywhere, layout.of_sums).flatten()
        self.weight = weight
        if target.is_floating_point():
            self.target = layout.local(target, _on_logits(layout, class_dim))
            self.row_weights = None
        else:
            target, ignore_index = target.long(), options["ignore_index"]
            self.target = layout.local(target, layout.of_rows)
            if isinstance(target, DTensor):
                _check_labels(self.target, self.classes, ignore_index, " of this process")
            else:  # the same everywhere: nobody waits
                _check_labels(target, self.classes, ignore_index, of_process="")
            self.row_weights = _row_weights(self.target, weight, ignore_index)

    def of_rows(self) -> dict[str, Any]:
        """The arguments of a process that has all classes of its rows."""
        here = {"target": self.target, "weight": self.weight, "reduction": "none"}
        return {**self.options, **here}

    def of_shard(self, part: Part, *tensors: Tensor | None) -> Any:
        """The losses of rows some of whose classes are here, which are `part`'s."""
        assert self.row_weights is not None
        ignore_index, z_loss = self.options["ignore_index"], self.options["z_loss"]
        is_bad = _out_of_range(self.target, self.classes, ignore_index)
        is_ignored = self.target == ignore_index
        labels = self.target.masked_fill(is_bad, self.classes).masked_fill(is_ignored, IGNORED)
        shard = ClassShard.of(self.layout, self.classes)
        transform = (self.options["logit_scale"], self.options["softcap"])
        nll, lse = RowsOfShard.apply(part, labels, shard, *transform, *tensors)
        losses = self.row_weights.to(nll.dtype) * nll
        if z_loss != 0:
            counted = lse.masked_fill(is_ignored, 0)
            losses = losses + z_loss * counted * counted
        losses = losses.masked_fill(is_ignored, 0)
        return (losses, lse) if self.options["return_lse"] else losses

    def reduced(self, of_rows: Any, dtype: torch.dtype | None = None) -> Any:
        """All processes' loss in `dtype`, and their `lse` where that is asked for."""
        losses, lse = of_rows if self.options["return_lse"] else (of_rows, None)
        dtype = losses.dtype if dtype is None else dtype
        reduction = self.options["reduction"]
        if reduction == "none":
            loss = self.layout.as_dtensor(losses.to(dtype), self.row_shape)
        elif reduction == "sum":
            (loss,) = self.layout.sums(losses)
        elif self.row_weights is None:
            loss = self.layout.sums(losses)[0] / math.prod(self.row_shape)
        else:
            total, divisor = self.layout.sums(losses, self.row_weights)
            loss = total / divisor
        loss = loss.to(dtype)
        result = loss if lse is None else (loss, self.layout.as_dtensor(lse, self.row_shape))
        return _noticing_changes(result, self.layout)


def _class_dim(shape: tuple[int, ...]) -> int:
    return min(1, len(shape) - 1)


def _on_logits(layout: Layout, class_dim: int) -> tuple[Placement, ...]:
    return layout.placements(lambda dim: Shard(dim + (dim >= class_dim)), Shard(class_dim))


def _may_share_classes(target: Tensor, options: dict[str, Any]) -> bool:
    """Not where a loss asks for more of its row than the state and one of the logits."""
    return not target.is_floating_point() and options["label_smoothing"] == 0


def cross_entropy(input: DTensor, target: Tensor, weight: Tensor | None, **options: Any) -> Any:
    """`functional.cross_entropy` of a DTensor."""
    _refuse_as_one_process(functional.cross_entropy, input, target, weight, **options)
    mesh, class_dim = input.device_mesh, _class_dim(input.shape)
    shared: list[int | None] = []
    for dim in _sharded_dims(input, mesh):
        if dim == class_dim:
            is_first = CLASSES not in shared
            shared.append(CLASSES if is_first and _may_share_classes(target, options) else None)
        else:
            shared.append(None if dim is None else dim - (dim > class_dim))
    layout = Layout(mesh, tuple(shared))
    logits = layout.local(input, _on_logits(layout, class_dim))
    loss = _Loss(layout, input.shape, target, weight, options)
    if not layout.shares_classes:
        return loss.reduced(functional.cross_entropy(logits, **loss.of_rows()))
    if _is_autocast(logits):
        logits = _cast(logits, torch.float32)
    return loss.reduced(loss.of_shard(Logits, logits), logits.dtype)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    **options: Any,
) -> Any:
    """`linear.linear_cross_entropy` of an input or a layer that is a DTensor."""
    if not isinstance(input, DTensor):
        # Of FSDP each process has rows of its own, and a layer that looks like one of tensor
        # parallelism: taken for the same rows they would give a wrong loss, and no error.
        raise RuntimeError(
            "linear_cross_entropy: input is a plain tensor, but linear_weight is a DTensor: with "
            "tensor parallelism pass DTensor.from_local(input, mesh, placements) to say which rows "
            "each process has; with FSDP call the loss where the layer is gathered, as in the "
            "forward of LinearCrossEntropyLoss under fully_shard"
        )
    _refuse_as_one_process(
        *(linear.linear_cross_entropy, input, linear_weight, target),
        **{"linear_bias": linear_bias, "weight": weight, **options},
    )
    mesh = input.device_mesh
    if isinstance(linear_weight, DTensor) and linear_weight.device_mesh != mesh:
        raise RuntimeError(
            f"linear_cross_entropy: input is on {mesh}, but linear_weight on "
            f"{linear_weight.device_mesh}"
        )
    may_share_classes = input.dim() == 2 and _may_share_classes(target, options)
    shared: list[int | None] = []
    for dim, layer_dim in zip(
        _sharded_dims(input, mesh), _sharded_dims(linear_weight, mesh), strict=True
    ):
        if layer_dim == 0 and may_share_classes and CLASSES not in shared:
            shared.append(CLASSES)
        else:
            shared.append(0 if dim == 0 and input.dim() == 2 else None)
    layout = Layout(mesh, tuple(shared))
    shape = (*input.shape[:-1], *linear_weight.shape[:-1])
    loss = _Loss(layout, shape, target, weight, options)

    on_layer = layout.placements(lambda _: Replicate(), Shard(0))
    sums_on_layer = layout.placements(lambda _: Partial(), Shard(0))

    def of_layer(x: Tensor) -> Tensor:
        return layout.local(x, on_layer, sums_on_layer)

    rows = layout.local(input, layout.of_rows, layout.placements(Shard, Partial()))
    classes = of_layer(linear_weight)
    bias = None if linear_bias is None else of_layer(linear_bias)
    if not layout.shares_classes:
        of_rows = {"linear_bias": bias, **loss.of_rows()}
        return loss.reduced(linear.linear_cross_entropy(rows, classes, **of_rows))
    dtype = rows.dtype
    if _is_autocast(rows):
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        lower = torch.get_autocast_dtype(rows.device.type)
        rows, classes = _cast(rows, lower), _cast(classes, lower)
        bias = None if bias is None else _cast(bias, lower)
    return loss.reduced(loss.of_shard(Layer, rows, classes, bias), dtype)
