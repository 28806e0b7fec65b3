"""The loss as a module."""

from typing import ClassVar

from torch import Tensor
from torch.nn.modules.loss import _WeightedLoss

from .functional import cross_entropy


class CrossEntropyLoss(_WeightedLoss):
    """Softmax cross-entropy of logits; see :func:`softreg_ext.cross_entropy`.

    Takes what :class:`torch.nn.CrossEntropyLoss` takes, by the same names, and can stand in its
    place. ``weight`` is a buffer: it moves with ``.to()`` and is saved with the state.

    Args:
        weight: one factor for each class, shape (C); default: all 1.
        ignore_index: the label whose rows add nothing to the loss.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].
        z_loss, logit_scale, softcap: see :func:`softreg_ext.cross_entropy`.
        size_average: deprecated; with ``reduce``, overrides ``reduction`` as in PyTorch.
        reduce: deprecated.
    """

    __constants__: ClassVar[list[str]] = ["ignore_index", "label_smoothing", "reduction"]

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
