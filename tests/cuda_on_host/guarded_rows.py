"""Every launch shape on rows among bytes that may not be touched: run under AddressSanitizer.

    python guarded_rows.py LIBRARY [--trap]

With --trap the last bytes of a row are forbidden too, which must be noticed.
"""

import ctypes
import sys
from typing import Any

import torch
from torch import Tensor

import softreg_ext

ADDRESS_SANITIZER = ctypes.CDLL(None)
GAP_BYTES = 64
# A thread to a row, some lanes, a warp, a block; several blocks; columns split.
SHAPES = [(1, 1), (700, 3), (40, 33), (9, 1000), (12, 2100), (5, 3001), (2, 20011), (1, 70001)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


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


def run(logits: Tensor, target: Tensor, **options: Any) -> None:
    leaves = [logits.requires_grad_()]
    if target.is_floating_point():
        leaves.append(target.requires_grad_())
    loss = softreg_ext.cross_entropy(logits, target, **options).sum()
    for result in (loss, *torch.autograd.grad(loss, leaves)):
        assert result.isfinite().all()


def run_shape(rows: int, classes: int, dtype: torch.dtype) -> None:
    values = torch.randn(rows, classes).to(dtype)
    labels = torch.randint(classes, (rows,))
    weight = (torch.rand(classes) + 0.5).to(dtype)
    for shift in {1, 8 // values.element_size()}:
        run(guarded(values, shift), labels)
        run(guarded(values, shift), labels.int(), weight=weight, label_smoothing=0.1)
        for other in {shift, 0}:
            probabilities = guarded(values.softmax(1), other)
            run(guarded(values, shift), probabilities, weight=weight, reduction="none", softcap=5.0)


def main(library: str, trap: bool) -> None:
    torch.ops.load_library(library)
    torch.manual_seed(0)
    if trap:
        logits = guarded(torch.randn(5, 3001), 0)
        forbid(logits[2, -4:], 4)
        run(logits, torch.zeros(5).long())
    # more rows than blocks
    run(guarded(torch.randn(200, 2100), 1), torch.randint(2100, (200,)))
    for dtype in DTYPES:
        for rows, classes in SHAPES:
            run_shape(rows, classes, dtype)
        images = torch.randn(3, 5, 7, 11).to(dtype)
        run(images, torch.randint(5, (3, 7, 11)), label_smoothing=0.1)
        run(images.detach()[:, :, 0, 0], images.detach()[:, :, 0, 1].softmax(1))
        run(torch.empty(0, 7, dtype=dtype), torch.empty(0).long(), reduction="sum")
    print("touched nothing else")


if __name__ == "__main__":
    main(sys.argv[1], "--trap" in sys.argv)
