"""Every launch shape of the CUDA kernels, small: for tools that watch what they touch.

python launch_shapes.py runs them on a GPU; guarded_rows.py on the host.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import softreg_ext  # noqa: F401 - the ops

# A thread to a row, some lanes, a warp, a block; several blocks; columns split.
SHAPES = [(1, 1), (700, 3), (40, 33), (9, 1000), (12, 2100), (5, 3001), (2, 20011), (1, 70001)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPS = torch.ops.softreg_ext
NONE, MEAN, SUM = range(3)
Layout = Callable[[Tensor, int], Tensor]  # of rows, the first of which begin at some item


def run(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: int = MEAN,
    softcap: float | None = None,
) -> None:
    """Every kernel there is."""
    report = torch.zeros(2, dtype=torch.float64, device="cpu", pin_memory=logits.is_cuda)
    options = (weight, reduction, -100, label_smoothing, 0.0, 1.0, softcap)
    loss, _, *saved, grad = OPS.cross_entropy_forward_with_gradient(
        logits, target, *options, False, 1.0
    )
    results = [*OPS.cross_entropy_forward(logits, target, *options, False), grad]
    upstream = torch.ones((), dtype=loss.dtype).expand_as(loss)
    arguments = (upstream, None, logits, target, *saved, *options)
    results.append(OPS.cross_entropy_backward(*arguments))
    for guess in (1.0, 0.5):
        OPS.cross_entropy_correction(*arguments, grad, guess, report)
        assert torch.equal(grad, results[-1])
    if target.is_floating_point():
        results.append(OPS.cross_entropy_grad_target(*arguments))
    assert all(result.isfinite().all() for result in results)


def run_shape(rows: int, classes: int, dtype: torch.dtype, layout: Layout) -> None:
    values = torch.randn(rows, classes).to(dtype)
    labels = torch.randint(classes, (rows,))
    weight = (torch.rand(classes) + 0.5).to(dtype)
    for shift in {1, 8 // values.element_size()}:
        run(layout(values, shift), labels)
        run(layout(values, shift), labels.int(), weight=weight, label_smoothing=0.1)
        for other in {shift, 0}:
            probabilities = layout(values.softmax(1), other)
            run(layout(values, shift), probabilities, weight=weight, reduction=NONE, softcap=5.0)


def run_all(layout: Layout, many_rows: int) -> None:
    """`many_rows`: more than there are blocks."""
    torch.manual_seed(0)
    run(layout(torch.randn(many_rows, 2100), 1), torch.randint(2100, (many_rows,)))
    for dtype in DTYPES:
        for rows, classes in SHAPES:
            run_shape(rows, classes, dtype, layout)
        images = torch.randn(3, 5, 7, 11).to(dtype)
        run(images, torch.randint(5, (3, 7, 11)), label_smoothing=0.1)
        run(images.detach()[:, :, 0, 0], images.detach()[:, :, 0, 1].softmax(1))
        run(torch.empty(0, 7, dtype=dtype), torch.empty(0).long(), reduction=SUM)


def shifted(values: Tensor, shift: int) -> Tensor:
    """Rows next to each other, from the `shift`-th item of their memory on."""
    return torch.cat([values.new_zeros(shift), values.flatten()])[shift:].view(values.shape)


if __name__ == "__main__":
    torch.set_default_device("cuda")
    processors = torch.cuda.get_device_properties().multi_processor_count
    run_all(shifted, 64 * processors + 8)
    torch.cuda.synchronize()
    print("ran all launch shapes")
