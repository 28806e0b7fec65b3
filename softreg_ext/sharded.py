"""The losses of DTensors: rows, classes or both are shared out over processes."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from . import functional, linear
from .sharded_layout import CLASSES, ClassShard, Layout
from .sharded_rows import IGNORED, Layer, Logits, Part, RowsOfShard


def _refuse_as_one_process(function: Any, *arguments: Any, **options: Any) -> None:
    """On all processes, and before any of them waits for another."""
    if torch.compiler.is_compiling():
        return

    def without_data(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return torch.empty(x.shape, dtype=x.dtype, device="meta", requires_grad=x.requires_grad)

    named = {name: without_data(x) for name, x in options.items()}
    function(*map(without_data, arguments), **named)


def _sharded_dims(x: Tensor, mesh: DeviceMesh) -> list[int | None]:
    """The dimension of `x` that each one of the mesh shares out; those of sums are added up."""
    placements = x.placements if isinstance(x, DTensor) else [None] * mesh.ndim
    return [p.dim % x.dim() if type(p) is Shard else None for p in placements]


def _in_all_classes(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """The labels, but `IGNORED` for those that are ignored.

    Raises:
        IndexError: one is out of range, on a CPU; on a GPU it becomes `classes`.
    """
    is_ignored = labels == ignore_index
    is_bad = ((labels < 0) | (labels >= classes)) & ~is_ignored
    is_cpu = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_cpu and is_bad.any():
        row = int(is_bad.flatten().nonzero()[0])
        raise IndexError(
            f"cross_entropy: target {int(labels.flatten()[row])} at row {row} of this process is "
            f"out of bounds for {classes} classes (ignore_index is {ignore_index})"
        )
    return labels.masked_fill(is_bad, classes).masked_fill(is_ignored, IGNORED)


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
        shape: torch.Size,
        target: Tensor,
        weight: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        """`shape` is that of all logits; `options` are those of `functional.cross_entropy`."""
        self.layout, self.options = layout, options
        class_dim = _class_dim(shape)
        self.classes = shape[class_dim]
        self.row_shape = torch.Size((*shape[:class_dim], *shape[class_dim + 1 :]))
        if weight is not None:
            weight = layout.local(weight, layout.everywhere)
        self.weight = weight
        if target.is_floating_point():
            self.target = layout.local(target, _on_logits(layout, class_dim))
            self.row_weights = None
        else:
            self.target = layout.local(target, layout.of_rows).long()
            self.row_weights = _row_weights(self.target, weight, options["ignore_index"])

    def of_rows(self) -> dict[str, Any]:
        """The arguments of a process that has all classes of its rows."""
        here = {"target": self.target, "weight": self.weight, "reduction": "none"}
        return {**self.options, **here}

    def of_shard(self, part: Part, *tensors: Tensor | None) -> Any:
        """The losses of rows some of whose classes are here, which are `part`'s."""
        assert self.row_weights is not None
        labels = _in_all_classes(self.target, self.classes, self.options["ignore_index"])
        shard = ClassShard.of(self.layout, self.classes)
        transform = (self.options["logit_scale"], self.options["softcap"])
        nll, lse = RowsOfShard.apply(part, labels, shard, *transform, *tensors)
        losses = self.row_weights.to(nll.dtype) * nll
        if self.options["z_loss"] != 0:
            losses = losses + self.options["z_loss"] * lse.square()
        losses = losses.masked_fill(labels == IGNORED, 0).to(part(*tensors).loss_dtype)
        return (losses, lse) if self.options["return_lse"] else losses

    def reduced(self, of_rows: Any) -> Any:
        """All processes' loss, and their `lse` where that is asked for."""
        losses, lse = of_rows if self.options["return_lse"] else (of_rows, None)
        reduction = self.options["reduction"]
        if reduction == "none":
            loss = self.layout.whole(losses, self.row_shape)
        elif reduction == "sum":
            (loss,) = self.layout.sums(losses)
        elif self.row_weights is None:
            loss = self.layout.sums(losses)[0] / self.row_shape.numel()
        else:
            total, divisor = self.layout.sums(losses, self.row_weights)
            loss = total / divisor
        loss = loss.to(losses.dtype)
        return loss if lse is None else (loss, self.layout.whole(lse, self.row_shape))


def _class_dim(shape: torch.Size) -> int:
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
    if torch.is_autocast_enabled(logits.device.type) and logits.dtype.itemsize == 2:
        logits = logits.float()
    return loss.reduced(loss.of_shard(Logits, logits))


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    **options: Any,
) -> Any:
    """`linear.linear_cross_entropy` of an input or a layer that is a DTensor."""
    _refuse_as_one_process(
        *(linear.linear_cross_entropy, input, linear_weight, target),
        **{"linear_bias": linear_bias, "weight": weight, **options},
    )
    mesh = next(x.device_mesh for x in (input, linear_weight) if isinstance(x, DTensor))
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
    shape = torch.Size((*input.shape[:-1], *linear_weight.shape[:-1]))
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
    is_autocast = torch.is_autocast_enabled(rows.device.type)
    if is_autocast:
        lower = torch.get_autocast_dtype(rows.device.type)
        rows, classes = rows.to(lower), classes.to(lower)
        bias = None if bias is None else bias.to(lower)
    part = partial(Layer, float_logits=is_autocast)
    return loss.reduced(loss.of_shard(part, rows, classes, bias))
