"""Who is measured on a GPU: PyTorch's ways, and the Triton and CuTe kernels that people install."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from cells import Cell
from peers import Loss, eager_for, torch_loss
from torch import Tensor

import softreg_ext

LABELS = frozenset({"plain", "half ignored", "reduction none"})


@dataclass(frozen=True)
class Peer:
    """A loss, and what is different about it.

    Attributes:
        overwrites: The gradient is computed in the forward pass, in the place of the logits.
    """

    loss: Loss
    overwrites: bool = False


def compiled(dynamic: bool) -> Loss:
    """With a code object of its own: torch.compile keeps few graphs for one."""
    code, defaults = torch_loss.__code__.replace(), torch_loss.__defaults__
    own = types.FunctionType(code, torch_loss.__globals__, argdefs=defaults)
    return torch.compile(own, dynamic=dynamic)


@cache
def compiled_once(dtype: str, dims: int, variant: str) -> Loss:
    """One graph for all sizes."""
    return compiled(dynamic=True)


def liger() -> Loss:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy


def quack() -> Loss:
    from quack.cross_entropy import cross_entropy

    return cross_entropy


def flash_attn() -> Loss:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    def loss(
        logits: Tensor, target: Tensor, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> Tensor:
        losses, _ = cross_entropy_loss(logits, target, label_smoothing=label_smoothing)
        return losses if reduction == "none" else losses.sum() / (target != -100).sum()

    return loss


# Package: its loss, the variants it takes, whether it overwrites the logits.
INSTALLED: dict[str, tuple[Callable[[], Loss], frozenset[str], bool]] = {
    "liger-kernel": (liger, LABELS | {"smoothing 0.1", "class weights"}, True),
    "quack-kernels": (quack, LABELS, False),
    "flash-attn": (flash_attn, LABELS | {"smoothing 0.1"}, False),
}


def peers_for(cell: Cell) -> tuple[dict[str, Peer], dict[str, str]]:
    """Those that take the cell; and of those that would, if they were there, why they are not."""
    peers = {
        "softreg_ext": Peer(softreg_ext.cross_entropy),
        "eager": Peer(eager_for(cell)),
        "compiled": Peer(compiled(dynamic=False)),
        "compiled, dynamic": Peer(compiled_once(cell.dtype, len(cell.shape), cell.variant)),
    }
    missing = {}
    for name, (load, variants, overwrites) in INSTALLED.items():
        if cell.variant not in variants or len(cell.shape) > 2 or cell.dtype == "float64":
            continue
        try:
            peers[name] = Peer(load(), overwrites)
        except Exception as error:  # whatever a package does on its import
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return peers, missing
