"""The matrix products of linear_cross_entropy, where they are shared out or widened."""

import platform

import pytest
import torch
from cases import DEVICE, DTYPES, random_source
from linear_cases import HALF_TYPES, apart, check, fused, is_in_chunks, results
from torch import Tensor

from softreg_ext._extension import _C

CLASSES = 2100
ROW_BYTES = CLASSES * 8


def make_wide(features: int, dtype: torch.dtype, bias: bool) -> tuple[list[Tensor], Tensor]:
    source = random_source(features)
    leaves = [
        torch.randn(37, features, generator=source) / features**0.5,
        torch.randn(CLASSES, features, generator=source),
        torch.randn(CLASSES, generator=source),
    ][: 3 if bias else 2]
    target = torch.randint(CLASSES, (37,), generator=source)
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], target


@pytest.fixture(params=[0, 4 * ROW_BYTES], ids=["one chunk", "chunks"])
def chunks(request: pytest.FixtureRequest) -> object:
    before = _C.set_chunk_bytes(request.param)
    yield
    _C.set_chunk_bytes(before)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("features", [8, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_classes(dtype: torch.dtype, features: int, bias: bool) -> None:
    """Blocks of classes, and of 1000 features more than one temporary of them."""
    leaves, target = make_wide(features, dtype, bias)
    check(leaves, target, terms=CLASSES)
    check(leaves, target, terms=CLASSES, reduction="none")


@pytest.mark.skipif(DEVICE.type != "cpu", reason="threads of the host")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads(dtype: torch.dtype) -> None:
    leaves, target = make_wide(24, dtype, bias=True)
    _C.set_chunk_bytes(16 * ROW_BYTES)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            check(leaves, target, terms=CLASSES)
    finally:
        torch.set_num_threads(threads)
        _C.set_chunk_bytes(0)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inference_mode(dtype: torch.dtype) -> None:
    leaves, target = make_wide(24, dtype, bias=True)
    expected = apart(leaves, target).detach()
    with torch.inference_mode():
        copies = [leaf.clone() for leaf in leaves]
        found = fused(copies, target)
    torch.testing.assert_close(found.clone(), expected)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU multiplies them fast")
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_products_that_would_be_slow_are_never_left_to_torch(dtype: torch.dtype) -> None:
    leaves, target = make_wide(24, dtype, bias=True)
    is_x86 = platform.machine() == "x86_64"
    if is_x86 and torch.backends.cpu.get_cpu_capability() != "AVX512":
        assert is_in_chunks(fused(leaves, target))
    assert results(fused, leaves, target)[1].dtype == dtype
    one_row = [leaves[0].detach()[:1].requires_grad_(), *leaves[1:]]
    assert not is_in_chunks(fused(one_row, target[:1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_classes(dtype: torch.dtype) -> None:
    leaves = [torch.randn(20, 6).to(dtype), torch.zeros(0, 6).to(dtype)]
    for reduction in ("none", "sum"):
        options = (None, {"none": 0, "sum": 2}[reduction], -100, 0.0, 0.0, 1.0, None, False, False)
        target = torch.full((20,), -100)
        whole = fused(leaves, target, reduction=reduction)
        chunks = torch.ops.softreg_ext.linear_cross_entropy_forward(*leaves, None, target, *options)
        assert not whole.any()
        assert torch.equal(chunks[0], whole)
