"""Who is measured."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from cells import Cell
from torch import Tensor

import softreg_ext

Loss = Callable[..., Tensor]


def log_softmax_gather(logits: Tensor, target: Tensor) -> Tensor:
    """The loss as people write it by hand."""
    return -logits.log_softmax(1).gather(1, target.unsqueeze(1)).mean()


def torch_loss(
    logits: Tensor, target: Tensor, softcap: float | None = None, **options: Any
) -> Tensor:
    """PyTorch's, of logits capped as models write it."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, target, **options)


def eager_for(cell: Cell) -> Loss:
    """PyTorch's own function, where that is all."""
    return torch_loss if cell.variant == "softcap 30" else F.cross_entropy


def peers_for(cell: Cell) -> dict[str, Loss]:
    """Those that take the cell; compiled anew, for this shape and number of threads."""
    torch._dynamo.reset()
    peers: dict[str, Loss] = {
        "softreg_ext": softreg_ext.cross_entropy,
        "eager": eager_for(cell),
        "compiled": torch.compile(eager_for(cell), dynamic=False),
    }
    if cell.variant == "plain":
        peers["log_softmax + gather"] = log_softmax_gather
    return peers


def yardsticks(logits: Tensor) -> dict[str, Callable[[], Any]]:
    """What the memory allows: a read of the logits, and a copy of them to memory in use."""
    words = logits.reshape(-1).view(torch.float32)  # whatever they are, the same bytes
    there = torch.empty_like(logits)
    return {"read": words.sum, "copy": lambda: there.copy_(logits)}
