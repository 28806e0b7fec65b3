"""Every launch shape on rows among bytes that may not be touched: run under AddressSanitizer.

    python guarded_rows.py LIBRARY rows|ends|trap

rows: among gaps; ends: a gap before the first and after the last; trap: the last bytes of a row are
forbidden too, which must be noticed.
"""

import ctypes
import sys

import torch
from launch_shapes import run, run_all
from torch import Tensor

ADDRESS_SANITIZER = ctypes.CDLL(None)
GAP_BYTES = 64
MANY_ROWS = 200  # the shim's three processors have 192 blocks


def forbid(start: Tensor, count: int) -> None:
    """`count` items from the one that `start` begins with; whole words of 8 bytes at the end."""
    ADDRESS_SANITIZER.__asan_poison_memory_region(
        ctypes.c_void_p(start.data_ptr()), ctypes.c_size_t(count * start.element_size())
    )


def guarded(values: Tensor, shift: int) -> Tensor:
    """`values` with a gap on each side of each row, `shift` items more: rows lie anywhere."""
    rows, classes = values.shape
    gap = GAP_BYTES // values.element_size() + shift
    memory = values.new_zeros(gap + rows * (classes + gap))
    framed = memory[gap:].view(rows, classes + gap)
    framed[:, :classes] = values
    forbid(memory, gap)
    for row in framed:
        forbid(row[classes:], gap)
    return framed[:, :classes]


def guarded_ends(values: Tensor, shift: int) -> Tensor:
    """`values` with rows next to each other, a gap before the first and one after the last."""
    gap = GAP_BYTES // values.element_size() + shift
    memory = values.new_zeros(gap + values.numel() + gap)
    within = memory[gap : gap + values.numel()].view(values.shape)
    within[:] = values
    forbid(memory, gap)
    forbid(memory[gap + values.numel() :], gap)
    return within


def main(library: str, what: str) -> None:
    torch.ops.load_library(library)
    if what == "trap":
        logits = guarded(torch.randn(5, 3001), 0)
        forbid(logits[2, -4:], 4)
        run(logits, torch.zeros(5).long())
    run_all({"rows": guarded, "ends": guarded_ends}[what], MANY_ROWS)
    print("touched nothing else")


if __name__ == "__main__":
    main(*sys.argv[1:])
