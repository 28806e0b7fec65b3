"""The losses as modules."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss

from .functional import cross_entropy
from .linear import linear_cross_entropy

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions


_BEYOND = {"z_loss": 0.0, "logit_scale": 1.0, "softcap": None}


def _options_beyond(loss: nn.Module) -> str:
    """For repr: the options that PyTorch's loss lacks, where they are not as by default."""
    given = {name: getattr(loss, name) for name in _BEYOND}
    return ", ".join(f"{name}={given[name]}" for name in given if given[name] != _BEYOND[name])


class CrossEntropyLoss(_WeightedLoss):
    """Softmax cross-entropy of logits; see :func:`softreg_ext.cross_entropy`.

    Takes the arguments of :class:`torch.nn.CrossEntropyLoss` under the same names (the deprecated
    ones keyword-only) and can replace it. ``weight`` is a buffer: it moves with ``.to()`` and is
    saved in the ``state_dict``.

    Args:
        weight: one factor for each class, shape (C); default: all 1.
        ignore_index: the label whose rows add nothing to the loss.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].
        z_loss, logit_scale, softcap: see :func:`softreg_ext.cross_entropy`.
        size_average: deprecated; with ``reduce``, overrides ``reduction`` as in PyTorch.
        reduce: deprecated.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.logit_scale = logit_scale
        self.softcap = softcap

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
        )

    def extra_repr(self) -> str:
        return _options_beyond(self)


class LinearCrossEntropyLoss(_WeightedLoss):
    """A linear layer and the softmax cross-entropy of its output; see
    :func:`softreg_ext.linear_cross_entropy`.

    Takes the arguments of :class:`torch.nn.LinearCrossEntropyLoss` under the same names, and has
    the same state: the layer is ``linear``, with ``C * d1 * ... * dK`` outputs.

    Args:
        in_features: the size of an input.
        num_classes: C.
        out_features: (d1, ..., dK), for a loss of K dimensions.
        bias: whether the layer has one.
        device, dtype: of the layer.
        reduction: "none", "mean" or "sum".
        weight: one factor for each class, shape (C); default: all 1.
        ignore_index: the label whose rows add nothing to the loss; None is -100.
        label_smoothing: in [0, 1].
        z_loss, logit_scale, softcap, options: see :func:`softreg_ext.linear_cross_entropy`.

    Raises:
        RuntimeError: ``weight`` has another shape, or ``label_smoothing`` is out of range.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        options: "LinearCrossEntropyOptions | None" = None,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(
                f"LinearCrossEntropyLoss: weight must have shape ({num_classes},), "
                f"but got {tuple(weight.shape)}"
            )
        if not 0 <= label_smoothing <= 1:
            raise RuntimeError(
                "LinearCrossEntropyLoss: label_smoothing must be between 0 and 1, "
                f"but got {label_smoothing}"
            )
        super().__init__(weight, reduction=reduction)
        self.num_classes = num_classes
        self.out_features = tuple(out_features)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.logit_scale = logit_scale
        self.softcap = softcap
        self.options = options
        outputs = math.prod(self.out_features, start=num_classes)
        self.linear = nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            options=self.options,
        )

    def extra_repr(self) -> str:
        listed = ("num_classes", "out_features", "reduction", "ignore_index", "label_smoothing")
        options = ", ".join(f"{name}={getattr(self, name)}" for name in (*listed, "options"))
        return ", ".join(filter(None, (options, _options_beyond(self))))
