"""The matrix products of linear_cross_entropy, where they are shared out or widened."""

import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import DEVICE, DTYPES, random_source
from linear_cases import HALF_TYPES, apart, check, fused, is_in_chunks, results
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

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
def chunks(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _C.set_chunk_bytes(request.param)
    yield
    _C.set_chunk_bytes(before)


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _C.set_onednn(request.param)
    yield
    _C.set_onednn(before)


@pytest.mark.usefixtures("chunks", "library")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("features", [8, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_classes(dtype: torch.dtype, features: int, bias: bool) -> None:
    """Blocks of classes, and of 1000 features more than one temporary of them."""
    leaves, target = make_wide(features, dtype, bias)
    check(leaves, target, terms=CLASSES)
    check(leaves, target, terms=CLASSES, reduction="none")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layout", ["strided", "transposed"])
def test_layers_that_are_views(layout: str) -> None:
    leaves, target = make_wide(24, torch.float32, bias=True)
    views = [
        x.detach().repeat_interleave(2, 1)[:, ::2]
        if layout == "strided"
        else x.detach().t().contiguous().t()
        for x in leaves[:2]
    ]
    assert not any(x.is_contiguous() for x in views)
    check([*(x.requires_grad_() for x in views), leaves[2]], target, terms=CLASSES)


def takes_onednn(leaves: list[Tensor], target: Tensor) -> bool:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        fused(leaves, target).backward()
    return any(event.key == "mkldnn::_linear_pointwise" for event in profiled.key_averages())


def told_of_cpu() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    return dict(re.findall(r"(\w[\w ]*\w)\s*: (.*)", path.read_text())) if path.exists() else {}


def is_zen_5_or_later() -> bool:
    told = told_of_cpu()
    return told.get("vendor_id") == "AuthenticAMD" and int(told["cpu family"]) >= 0x1A


def is_slow_with_torch(dtype: torch.dtype) -> bool:
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    has_float16 = has_avx512 and "avx512_fp16" in told_of_cpu().get("flags", "").split()
    is_fast = {torch.bfloat16: has_avx512, torch.float16: has_float16}[dtype]
    return platform.machine() == "x86_64" and not is_fast


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")
@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU has its own")
def test_which_library() -> None:
    """oneDNN's is not worth it for few features or classes; no other type is MKL's."""
    leaves, target = make_wide(1000, torch.float32, bias=False)
    expected = torch.backends.mkl.is_available() and is_zen_5_or_later()
    assert is_in_chunks(fused(leaves, target)) == expected
    assert takes_onednn(leaves, target) == expected
    with torch.backends.mkldnn.flags(enabled=False):
        assert not takes_onednn(leaves, target)
    try:
        _C.set_chunk_bytes(4 * ROW_BYTES)
        assert not takes_onednn(*make_wide(8, torch.float32, bias=False))
        assert not takes_onednn(*make_wide(1000, torch.float64, bias=False))
        _C.set_onednn(True)
        assert takes_onednn(*make_wide(8, torch.float32, bias=False))
        assert not takes_onednn(*make_wide(8, torch.float64, bias=False))
        _C.set_onednn(False)
        assert not takes_onednn(leaves, target)
    finally:
        _C.set_onednn(None)
        _C.set_chunk_bytes(0)


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
    for rows in (37, 1):
        some = [leaves[0].detach()[:rows].requires_grad_(), *leaves[1:]]
        assert is_in_chunks(fused(some, target[:rows])) == is_slow_with_torch(dtype)
        assert results(fused, some, target[:rows])[1].dtype == dtype
        check(some, target[:rows], terms=CLASSES)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_features(dtype: torch.dtype) -> None:
    leaves = [torch.zeros(n, 0, dtype=dtype, requires_grad=True) for n in (37, CLASSES)]
    target = torch.zeros(37).long()
    torch.testing.assert_close(results(fused, leaves, target), results(apart, leaves, target))


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
