"""Large gradients lie in memory that an earlier one has left."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import DTYPES
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import softreg_ext
from softreg_ext._extension import _C

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has MADV_FREE")
CLASSES = 1024


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    softreg_ext.release_memory()


def grad(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, CLASSES, generator=generator, requires_grad=True)
    target = torch.randint(CLASSES, (rows,), generator=generator)
    (of_logits,) = torch.autograd.grad(softreg_ext.cross_entropy(logits, target), logits)
    probabilities = torch.softmax(logits.detach(), 1)
    probabilities[torch.arange(rows), target] -= 1
    torch.testing.assert_close(of_logits, probabilities / rows, rtol=1e-4, atol=1e-8)
    return of_logits


def test_memory_is_used_again() -> None:
    first = grad(2048).data_ptr()
    assert grad(2048, seed=1).data_ptr() == first
    assert grad(1500, seed=2).data_ptr() == first


def profiled_bytes(call: Callable[[], Any]) -> tuple[int, Any]:
    """What the process holds more of after the call, as the profiler has it, and the result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = call()
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages()), result


def test_the_profiler_sees_it() -> None:
    logits, target = torch.randn(2048, CLASSES, requires_grad=True), torch.zeros(2048).long()

    def step() -> list[Tensor]:
        return list(torch.autograd.grad(softreg_ext.cross_entropy(logits, target), logits))

    for _ in range(2):  # memory that comes anew, and what was kept
        held, gradients = profiled_bytes(step)
        assert held == gradients[0].nbytes
        assert profiled_bytes(gradients.clear)[0] == -held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_a_linear_layer(dtype: torch.dtype) -> None:
    """Its weight's gradient, and the logits it is made of."""
    input = torch.ones(1024, 64, dtype=dtype)
    weight = torch.zeros(8192, 64, dtype=dtype, requires_grad=True)

    def step() -> int:
        loss = softreg_ext.linear_cross_entropy(input, weight, torch.zeros(1024).long())
        (of_weight,) = torch.autograd.grad(loss, weight)
        return of_weight.data_ptr()

    assert len({step() for _ in range(3)}) == 1
    bytes_of_logits, bytes_of_weight = (x * 8192 * dtype.itemsize for x in (1024, 64))
    assert softreg_ext.release_memory() >= bytes_of_logits + bytes_of_weight


@pytest.mark.parametrize("chunk_bytes", [0, 1 << 20], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_it_held_does_not_matter(dtype: torch.dtype, chunk_bytes: int) -> None:
    """A product that overwrites may not read: of memory that the system gives, all is 0."""
    source = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(size, 64, generator=source).to(dtype).requires_grad_() for size in (512, 4100)
    ]
    for rows in (64 << i for i in range(8)):  # 256 KB to 32 MB of NaN
        logits = torch.full((rows, CLASSES), float("nan"), requires_grad=True)
        softreg_ext.cross_entropy(logits, torch.zeros(rows).long()).backward()
        assert logits.grad is not None
        assert logits.grad.isnan().all()
    before = _C.set_chunk_bytes(chunk_bytes)
    loss = softreg_ext.linear_cross_entropy(*leaves, torch.zeros(512).long())
    gradients = torch.autograd.grad(loss, leaves)
    _C.set_chunk_bytes(before)
    assert all(x.isfinite().all() for x in (loss, *gradients))


def test_not_while_it_is_in_use() -> None:
    first, second = grad(2048), grad(2048, seed=1)
    assert first.data_ptr() != second.data_ptr()
    assert not torch.equal(first, second)
    view = first[5:]
    del first
    assert grad(2048, seed=2).data_ptr() not in (second.data_ptr(), view.data_ptr() - 5 * 4096)


def test_a_small_gradient_does_not_hold_a_large_memory() -> None:
    large = grad(8192).data_ptr()
    assert grad(2048).data_ptr() != large
    assert grad(8192).data_ptr() == large


@pytest.mark.parametrize(("kept", "rows", "rows_again"), [(4, 2048, 2048), (4, 256, 200)])
def test_so_many_are_kept(kept: int, rows: int, rows_again: int) -> None:
    """Four large ones, four small ones."""
    alive = [grad(rows, seed) for seed in range(kept + 1)]
    addresses = {of.data_ptr() for of in alive}
    alive.clear()
    again = [grad(rows_again, seed) for seed in range(kept)]
    assert {of.data_ptr() for of in again} < addresses
    del again
    assert softreg_ext.release_memory() == kept * rows * CLASSES * 4


def test_small_ones_do_not_drive_out_large_ones() -> None:
    large = grad(2048).data_ptr()
    alive = [grad(256, seed) for seed in range(5)]
    alive.clear()
    assert grad(2048, seed=1).data_ptr() == large


def test_one_that_is_used_over_and_over_does_not_drive_out_the_other() -> None:
    small, large = grad(2048), grad(8192)
    del large, small
    grad(2048)
    assert softreg_ext.release_memory() == (2048 + 8192) * CLASSES * 4


def test_release() -> None:
    grad(2048)
    assert softreg_ext.release_memory() == 2048 * CLASSES * 4
    assert softreg_ext.release_memory() == 0
    grad(63)
    assert softreg_ext.release_memory() == 0, "252 KB are malloc's"
    grad(64)
    assert softreg_ext.release_memory() == 64 * CLASSES * 4


def test_resized_in_place() -> None:
    """Its storage is an ordinary one."""
    of_logits = grad(2048)
    expected = of_logits.clone()
    of_logits.resize_(3000, CLASSES)
    assert torch.equal(of_logits[:2048], expected)
    assert softreg_ext.release_memory() == 2048 * CLASSES * 4


def test_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(grad, 2048 + seed, seed) for seed in range(24)]:
            done.result()
