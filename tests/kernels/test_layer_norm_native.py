"""The CPU kernels of layer_norm: each instruction set that this CPU has, threads, and what the registered ops check."""

import functools

import pytest
import torch
from torch.library import opcheck

from misplace.kernels import Impl, layer_norm
from misplace.kernels.impl import choose
from misplace.kernels.layer_norm import native
from misplace.kernels.testing.compare import check
from misplace.kernels.testing.inputs import normal

OPS = torch.ops.misplace
ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
DTYPES = (torch.float32, torch.bfloat16)
EPS = 1e-6


def require_isa(isa: str) -> None:
    choose("layer_norm", Impl.NATIVE, torch.device("cpu"), {"cpu": (Impl.NATIVE,)})
    try:
        native.layer_norm(torch.zeros(0, 1), torch.zeros(1), torch.zeros(1), EPS, isa=isa)
    except ValueError as error:
        pytest.skip(str(error))


def eager(x, weight, bias):
    if x.dtype == torch.float32:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + EPS)
    return centred * scale * weight.to(x.dtype) + bias.to(x.dtype)


def make(rows, width, dtype):
    return {
        "x": 2 * normal(rows, width, seed=width, dtype=dtype) + 1,
        "weight": 1 + normal(width, seed=1) / 4,
        "bias": normal(width, seed=2),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_against_fp64(isa, dtype):
    require_isa(isa)
    for rows, width in ((129, 192), (65, 33), (64, 15), (7, 3)):
        check(
            lambda x, weight, bias: native.layer_norm(x, weight, bias, EPS, isa=isa),
            eager,
            functools.partial(layer_norm, impl="reference"),
            make(rows, width, dtype),
            ["x", "weight", "bias"],
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads(dtype):
    require_isa("plain")
    inputs = [tensor.requires_grad_() for tensor in make(500, 40, dtype).values()]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = layer_norm(*inputs, impl="native")
            results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", ISAS)
def test_a_mean_far_from_zero_costs_its_own_rounding(isa):
    """The variance is of what is centred: E[x^2] - E[x]^2 would be off by 1 here."""
    require_isa(isa)
    mean = 4096
    x = mean + normal(3, 100, seed=1).round()
    weight, bias = torch.ones(100), torch.zeros(100)
    exact = layer_norm(x.double(), weight.double(), bias.double(), impl="reference")
    y = native.layer_norm(x, weight, bias, EPS, isa=isa).double()
    # of the sum of a hundred and of the mean; the standard deviation is near 1
    assert (y - exact).abs().max() <= 2 * mean * torch.finfo(torch.float32).eps


def test_opcheck_and_what_the_registered_ops_check():
    require_isa("plain")
    x, weight, bias = make(5, 7, torch.bfloat16).values()
    for save in (False, True):
        opcheck(OPS.layer_norm.default, (x, weight, bias, EPS, save, ""))
    _, mean, rstd = OPS.layer_norm(x, weight, bias, EPS, True, "")
    opcheck(OPS.layer_norm_backward.default, (torch.ones_like(x), x, weight, mean, rstd, ""))
    with pytest.raises(TypeError, match="native takes float32 or bfloat16"):
        OPS.layer_norm(x.half(), weight, bias, EPS, True, "")
    with pytest.raises(ValueError, match=r"need x \[..., D\] and weight \[D\]"):
        OPS.layer_norm(x, weight[:3], bias, EPS, True, "")
    with pytest.raises(ValueError, match="bias must be as weight"):
        OPS.layer_norm(x, weight, bias[:3], EPS, True, "")
    with pytest.raises(ValueError, match="must be as x"):
        OPS.layer_norm_backward(x[:2], x, weight, mean, rstd, "")
    with pytest.raises(ValueError, match="statistics of every row"):
        OPS.layer_norm_backward(x, x, weight, mean[:2], rstd, "")
