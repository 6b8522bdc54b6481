import functools

import pytest
import torch
from scipy.stats import norm

from misplace.kernels import Impl, ImplUnavailableError, gelu
from misplace.kernels.gelu import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS, ROWS

IMPLS = runnable(SUPPORTED)
OF_ANY_DTYPE = [(device, impl) for device, impl in IMPLS if impl is not Impl.NATIVE]
oracle = functools.partial(gelu, impl="reference")


def eager(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, dtype):
    for seed, shape in enumerate((*ROWS, (), (33, 127))):
        for change_layout in LAYOUTS.values():
            x = change_layout(3 * normal(*shape, seed=seed, dtype=dtype, device=device))
            check(functools.partial(gelu, impl=impl), eager, oracle, {"x": x}, ["x"])


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
    assert torch.autograd.gradcheck(functools.partial(gelu, impl=impl), x)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(gelu, impl=impl)
    tensors = {"x": normal(7, 33, seed=1, device=device)}
    require_same_bits(op, tensors, ["x"])
    require_one_graph(op, tensors, ["x"])


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"gelu: x must be floating point, not torch.int64"):
        gelu(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ImplUnavailableError, match=r"gelu: (has no )?impl=triton"):
        gelu(torch.ones(3), impl="triton")
    with pytest.raises(TypeError, match=r"gelu: impl=native takes .* not torch.float64"):
        gelu(torch.ones(3, dtype=torch.float64), impl="native")
    with pytest.raises(ImplUnavailableError, match="gelu: unknown impl 'fastest'"):
        gelu(torch.ones(3), impl="fastest")
