"""The loss of rows whose classes several processes have, each some of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .sharded_layout import ClassShard

IGNORED = -100  # what a label is that is ignored, and to a process that does not have its class
_NONE = 0  # the reduction, as the ops number them


class Logits(NamedTuple):
    """What a process has of logits, and the ops for it."""

    logits: Tensor

    @property
    def loss_dtype(self) -> torch.dtype:
        return self.logits.dtype

    def forward(self, labels: Tensor, *rest: Any) -> Any:
        found = torch.ops.softreg_ext.cross_entropy_forward(*self, labels, *rest)
        losses, lse, state, total_weight = found
        if losses.dtype != state.dtype:  # not rounded before they are put together
            losses = self._losses(labels, state, *rest[-3:-1])
        return losses, lse, state, total_weight

    def _losses(
        self, labels: Tensor, state: Tensor, logit_scale: float, softcap: float | None
    ) -> Tensor:
        if self.logits.numel() == 0:
            return state.new_zeros(labels.shape)
        class_dim = min(1, self.logits.dim() - 1)
        columns = labels.clamp(0, self.logits.size(class_dim) - 1).unsqueeze(class_dim)
        x = self.logits.gather(class_dim, columns).flatten().to(state.dtype) * logit_scale
        x = x if softcap is None else softcap * torch.tanh(x / softcap)
        return state[1].log() - (x - state[0])

    def backward(self, upstream: tuple[Tensor, Tensor], *rest: Any, wanted: list[bool]) -> Any:
        return [torch.ops.softreg_ext.cross_entropy_backward(*upstream, *self, *rest)]


class Layer(NamedTuple):
    """What a process has of a linear layer, and the ops for its output.

    The loss of half types is in float32, not rounded before it is put together.
    """

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None

    @property
    def float_logits(self) -> bool:
        return self.input.dtype.itemsize == 2

    @property
    def loss_dtype(self) -> torch.dtype:
        return torch.float32 if self.float_logits else self.input.dtype

    def forward(self, *rest: Any) -> Any:
        op = torch.ops.softreg_ext.linear_cross_entropy_forward
        return op(*self, *rest, self.float_logits)

    def backward(self, upstream: tuple[Tensor, Tensor], *rest: Any, wanted: list[bool]) -> Any:
        op = torch.ops.softreg_ext.linear_cross_entropy_backward
        return op(*upstream, *self, *rest, self.float_logits, wanted)


Part = Callable[..., Logits | Layer]


class RowsOfShard(torch.autograd.Function):
    """``lse - x_t`` and ``lse`` of each row, in the dtype that losses are computed in.

    Each process does with its classes what it would do with all of them; three numbers a row
    travel. As in one process ``lse - x_t`` is ``log(sum) - (x_t - max)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        part: Part,
        labels: Tensor,
        shard: ClassShard,
        logit_scale: float,
        softcap: float | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`labels` are `IGNORED`, or numbers of classes; a GPU's kernels stop at those beyond."""
        is_here = (labels >= shard.first) & (labels < shard.first + shard.count)
        labels_here = torch.where(is_here, labels - shard.first, IGNORED)
        labels_here = labels_here.masked_fill(labels >= shard.classes, shard.count)
        options = (None, _NONE, IGNORED, 0.0, 0.0, logit_scale, softcap)
        losses, _, state, total_weight = part(*tensors).forward(labels_here, *options, True)
        here = torch.cat((state, losses.to(state.dtype).reshape(1, -1)))
        maxima, sums, losses_of_owners = shard.gathered(here).unbind(1)

        # Of no classes, or nothing but -inf, the kernels' maximum is 0.
        largest = maxima.masked_fill(sums == 0, -torch.inf).amax(0)
        largest = largest.masked_fill(largest == -torch.inf, 0)
        total = (sums * (maxima - largest).exp()).masked_fill(sums == 0, 0).sum(0)
        owner = shard.owner(labels).reshape(1, -1)
        maximum, sum_, loss = (x.gather(0, owner)[0] for x in (maxima, sums, losses_of_owners))
        nll = loss + (total.log() - sum_.log()) + (largest - maximum)
        # A process whose logits are all -inf has no loss to tell.
        nll = nll.masked_fill((sum_ == 0) & (total > 0), torch.inf)

        ctx.save_for_backward(labels_here, torch.stack((largest, total)), total_weight, *tensors)
        ctx.part, ctx.options = part, options
        return nll.reshape(labels.shape), (largest + total.log()).reshape(labels.shape)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "cross_entropy: no second derivatives (create_graph=True) where the classes are "
                "sharded; redistribute the input so that each process has all of its rows' classes"
            )
        labels_here, state, total_weight, *tensors = ctx.saved_tensors
        # Where another process has the label's class, all that its loss asks of these is less.
        grad_lse = grad_lse + grad_nll.masked_fill(labels_here != IGNORED, 0)
        wanted = list(ctx.needs_input_grad[-len(tensors) :])
        part = ctx.part(*tensors)
        gradients = part.backward(
            (grad_nll.to(part.loss_dtype), grad_lse),
            *(labels_here, state, total_weight, *ctx.options),
            wanted=wanted,
        )
        found = (x if is_wanted else None for x, is_wanted in zip(gradients, wanted, strict=True))
        return None, None, None, None, None, *found
