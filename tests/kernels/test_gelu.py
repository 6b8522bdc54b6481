import functools

import pytest
import torch
from scipy.stats import norm

from misplace.kernels import Impl, ImplUnavailableError, gelu
from misplace.kernels.gelu import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS, ROWS

IMPLS = runnable(SUPPORTED)
OF_ANY_DTYPE = [(device, impl) for device, impl in IMPLS if impl in (Impl.TORCH, Impl.REFERENCE)]
oracle = functools.partial(gelu, impl="reference")


def eager(x, bias=None):
    x = x if bias is None else x + bias.to(x.dtype)
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def make(shape, *, seed=0, dtype=torch.float32, biased=True, device="cpu"):
    x = {"x": 3 * normal(*shape, seed=seed, dtype=dtype, device=device)}
    return x | ({"bias": normal(shape[-1], seed=seed + 1, device=device)} if biased else {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, dtype):
    for seed, shape in enumerate((*ROWS, (), (33, 127))):
        for change_layout in LAYOUTS.values():
            x = change_layout(3 * normal(*shape, seed=seed, dtype=dtype, device=device))
            check(functools.partial(gelu, impl=impl), eager, oracle, {"x": x}, ["x"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_with_a_bias(device, impl, dtype):
    op = functools.partial(gelu, impl=impl)
    for rows in ROWS:
        check(op, eager, oracle, make((*rows, 33), dtype=dtype, device=device), ["x", "bias"])
    for change_layout in LAYOUTS.values():
        tensors = {name: change_layout(t) for name, t in make((1201, 37), dtype=dtype, device=device).items()}
        check(op, eager, oracle, tensors, ["x", "bias"])
    tensors = make((50, 64), dtype=dtype, device=device)
    tensors["bias"] = tensors["bias"].to(dtype)
    check(op, eager, oracle, tensors, ["x", "bias"])


@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] is not Impl.TORCH])
def test_the_bias_gradient_is_summed_in_fp32(device, impl):
    """Four thousand times the derivative at 0, each within its own rounding: a bf16 sum would stop at 256."""
    x = torch.zeros(4001, 2, dtype=torch.bfloat16, device=device)
    bias = torch.zeros(2, device=device, requires_grad=True)
    gelu(x, bias, impl=impl).sum().backward()
    assert bias.grad.tolist() == pytest.approx([2000.5, 2000.5], rel=torch.finfo(torch.bfloat16).eps / 2)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_either_gradient_alone(device, impl):
    op = functools.partial(gelu, impl=impl)
    tensors = make((7, 33), device=device)
    both = values_and_gradients(op, tensors, ["x", "bias"])
    for name in ("x", "bias"):
        assert torch.equal(values_and_gradients(op, tensors, [name])[f"d {name}"], both[f"d {name}"])


def test_oracle_is_x_times_the_normal_distribution_function():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    expected = x * torch.from_numpy(norm.cdf(x.numpy()))
    torch.testing.assert_close(oracle(x), expected, rtol=1e-13, atol=1e-15)


def test_oracle_is_not_the_tanh_form():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    tanh_form = torch.nn.functional.gelu(x, approximate="tanh")
    assert (oracle(x) - tanh_form).abs().max() > 1e-4


@pytest.mark.parametrize("device, impl", OF_ANY_DTYPE)
def test_gradcheck(device, impl):
    x = normal(3, 5, seed=1, dtype=torch.float64, device=device).requires_grad_()
    bias = normal(5, seed=2, dtype=torch.float64, device=device).requires_grad_()
    assert torch.autograd.gradcheck(functools.partial(gelu, impl=impl), x)
    assert torch.autograd.gradcheck(functools.partial(gelu, impl=impl), (x, bias))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(gelu, impl=impl)
    for biased in (False, True):
        tensors = make((7, 33), biased=biased, device=device)
        require_same_bits(op, tensors, list(tensors))
        require_one_graph(op, tensors, list(tensors))


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"gelu: x must be floating point, not torch.int64"):
        gelu(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ImplUnavailableError, match=r"gelu: (has no )?impl=xformers"):
        gelu(torch.ones(3), impl="xformers")
    with pytest.raises(ValueError, match=r"gelu: bias must be \[D\] = \[3\], not \[1\]"):
        gelu(torch.ones(2, 3), torch.ones(1))
    with pytest.raises(ValueError, match=r"gelu: x must be \[\.\.\., D\] with D >= 1 for a bias, not \[\]"):
        gelu(torch.ones(()), torch.ones(1))
    with pytest.raises(ValueError, match="gelu: bias is on meta"):
        gelu(torch.ones(3), torch.ones(3, device="meta"))
    with pytest.raises(TypeError, match="gelu: bias must be floating point"):
        gelu(torch.ones(3), torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"gelu: impl=native takes .* not torch.float64"):
        gelu(torch.ones(3, dtype=torch.float64), impl="native")
    with pytest.raises(ImplUnavailableError, match="gelu: unknown impl 'fastest'"):
        gelu(torch.ones(3), impl="fastest")
