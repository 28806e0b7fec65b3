"""The inputs that PyTorch tests its own cross-entropy with, given to ours."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, DTYPES
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import softreg_ext

pytest.importorskip("expecttest", reason="PyTorch's own tests cannot be imported without it")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

OP = next(op for op in op_db if op.name == "nn.functional.cross_entropy")
MODULE = next(module for module in module_db if module.module_cls is nn.CrossEntropyLoss)


def samples(dtype: torch.dtype) -> list[Any]:
    return list(OP.sample_inputs(str(DEVICE), dtype, requires_grad=True))


def run(
    loss: Callable[..., Tensor], sample: Any, dtype: torch.dtype, grad_output: Tensor
) -> list[Tensor]:
    """The loss and the gradients of what requires one, computed in `dtype`."""

    def of_dtype(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.detach().to(dtype).requires_grad_(x.requires_grad)

    tensors = [of_dtype(x) for x in (sample.input, *sample.args)]
    value = loss(*tensors, **{name: of_dtype(x) for name, x in sample.kwargs.items()})
    leaves = [x for x in tensors if x.requires_grad]
    grads = torch.autograd.grad(value, leaves, grad_output.to(dtype).expand_as(value))
    return [value.detach(), *grads]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(dtype: torch.dtype) -> None:
    """Over the samples together, as accurate as PyTorch's own."""
    draws: list[oracle.Draw] = []
    for sample in samples(dtype):
        for factor in (1.0, 0.618034, 1.414214):
            upstream = torch.tensor(factor)
            exact, theirs = (
                run(F.cross_entropy, sample, d, upstream) for d in (torch.double, dtype)
            )
            ours = run(softreg_ext.cross_entropy, sample, dtype, upstream)
            for a, b, e in zip(ours, theirs, exact, strict=True):
                if dtype == torch.float64 or not e.isfinite().all():
                    torch.testing.assert_close(a, b, equal_nan=True)
                else:
                    draws.append(oracle.Draw(a, b, oracle.extended(e)))
    assert len(samples(dtype)) > 10
    if dtype != torch.float64:
        oracle.assert_as_accurate(*draws)


def test_derivatives() -> None:
    checked = 0
    for sample in samples(torch.float64):
        if sample.input.numel() > 60:
            continue

        def loss(*tensors: Tensor, options: Any = sample.kwargs) -> Tensor:
            return softreg_ext.cross_entropy(*tensors, **options)

        tensors = (sample.input, *sample.args)
        assert gradcheck(loss, tensors, check_forward_ad=True)
        assert gradgradcheck(loss, tensors)
        checked += 1
    assert checked > 10


def module_inputs(dtype: torch.dtype) -> Iterator[Any]:
    return MODULE.module_inputs_func(MODULE, str(DEVICE), dtype, True, training=True)


def module_loss(kind: type[nn.Module], given: Any, dtype: torch.dtype) -> Tensor:
    made, call = given.constructor_input, given.forward_input
    module = kind(*made.args, **copy.deepcopy(made.kwargs)).to(dtype)
    loss: Tensor = module(*(x.to(dtype) if x.is_floating_point() else x for x in call.args))
    return loss.detach()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_modules(dtype: torch.dtype) -> None:
    draws = []
    for given in module_inputs(dtype):
        ours = module_loss(softreg_ext.CrossEntropyLoss, given, dtype)
        theirs = module_loss(nn.CrossEntropyLoss, given, dtype)
        exact = module_loss(nn.CrossEntropyLoss, given, torch.float64)
        if dtype == torch.float64 or not exact.isfinite().all():
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        else:
            draws.append(oracle.Draw(ours, theirs, oracle.extended(exact)))
    if dtype != torch.float64:
        assert len(draws) > 10
        oracle.assert_as_accurate(*draws)


@pytest.mark.skipif(
    MODULE.module_error_inputs_func is None,
    reason=f"torch {torch.__version__} has no error inputs for this module",
)
def test_errors() -> None:
    errors = list(
        MODULE.module_error_inputs_func(MODULE, str(DEVICE), torch.float64, True, training=True)
    )
    assert errors
    for given in errors:
        made = given.module_error_input.constructor_input
        call = given.module_error_input.forward_input
        module = softreg_ext.CrossEntropyLoss(*made.args, **made.kwargs)
        with pytest.raises(given.error_type):
            module(*call.args, **call.kwargs)
