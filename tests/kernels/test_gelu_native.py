"""The CPU kernels of gelu: each instruction set that this CPU has, every bf16 number, and threads."""

import functools

import pytest
import torch
from torch.library import opcheck

from misplace.kernels import Impl, gelu
from misplace.kernels.gelu import native
from misplace.kernels.impl import choose
from misplace.kernels.testing.compare import check
from misplace.kernels.testing.inputs import normal

OPS = torch.ops.misplace
ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
DTYPES = (torch.float32, torch.bfloat16)
oracle = functools.partial(gelu, impl="reference")


def require_isa(isa: str) -> None:
    choose("gelu", Impl.NATIVE, torch.device("cpu"), {"cpu": (Impl.NATIVE,)})
    try:
        native.gelu(torch.zeros(0), isa=isa)
    except ValueError as error:
        pytest.skip(str(error))


def eager(x, bias=None):
    x = x if bias is None else x + bias.to(x.dtype)
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_against_fp64(isa, dtype):
    require_isa(isa)
    for count in (1, 3, 15, 17, 40000):
        x = 3 * normal(count, seed=count, dtype=dtype)
        check(functools.partial(native.gelu, isa=isa), eager, oracle, {"x": x}, ["x"])
    for rows, width in ((1, 3), (130, 33), (2000, 64)):
        tensors = {"x": 3 * normal(rows, width, seed=rows, dtype=dtype), "bias": normal(width, seed=1)}
        check(functools.partial(native.gelu, isa=isa), eager, oracle, tensors, ["x", "bias"])


@pytest.mark.parametrize("isa", ISAS)
def test_every_bf16_number_is_within_an_ulp(isa):
    """Of the value, down to x = -5.5; the bits of bf16 are all the numbers there are."""
    require_isa(isa)
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    x = x[x.isfinite() & (x >= -5.5) & (x.abs() > 1e-30)]
    exact = oracle(x.double())
    ulp = torch.finfo(torch.bfloat16).eps * 2.0 ** exact.abs().log2().floor()
    assert ((native.gelu(x, isa=isa).double() - exact).abs() <= 0.6 * ulp).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_the_ends_of_the_range(isa, dtype):
    require_isa(isa)
    large = torch.finfo(dtype).max
    x = torch.tensor([large, -large, torch.inf, -torch.inf, torch.nan, 0.0], dtype=dtype, requires_grad=True)
    y = native.gelu(x, isa=isa)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, torch.tensor([large, 0, torch.inf, 0, torch.nan, 0], dtype=dtype), equal_nan=True)
    torch.testing.assert_close(dx, torch.tensor([1, 0, 1, 0, torch.nan, 0.5], dtype=dtype), equal_nan=True)


@pytest.mark.parametrize("shape", [(3 * 16384 + 5,), (5003, 40)])
def test_bits_do_not_depend_on_threads(shape):
    require_isa("plain")
    x = normal(*shape, seed=1, dtype=torch.bfloat16).requires_grad_()
    inputs = [x, normal(shape[-1], seed=2).requires_grad_()] if len(shape) > 1 else [x]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = gelu(*inputs, impl="native")
            results.append((y, *torch.autograd.grad(y.sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck_and_what_the_registered_ops_check():
    require_isa("plain")
    x, bias = normal(5, 7, seed=1), normal(7, seed=2)
    for given in (None, bias):
        opcheck(OPS.gelu.default, (x, given, ""))
        opcheck(OPS.gelu_backward.default, (x.mT.contiguous().mT, x.bfloat16().float(), given, ""))
    with pytest.raises(TypeError, match="native takes float32 or bfloat16"):
        OPS.gelu(x.half(), None, "")
    with pytest.raises(ValueError, match="must be as x"):
        OPS.gelu_backward(x, x[:2], None, "")
    for wrong in (bias[:3], x):
        with pytest.raises(ValueError, match=r"need x \[..., D\] with bias \[D\]"):
            OPS.gelu(x, wrong, "")
