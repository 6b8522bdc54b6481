import functools

import pytest
import torch

from misplace.kernels import Impl, layer_norm
from misplace.kernels.layer_norm import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS, ROWS, WIDTHS

IMPLS = runnable(SUPPORTED)
OF_ANY_DTYPE = [(device, impl) for device, impl in IMPLS if impl in (Impl.TORCH, Impl.REFERENCE)]
WANTED = ["x", "weight", "bias"]
oracle = functools.partial(layer_norm, impl="reference")


def eager(x, weight, bias):
    """PyTorch's operator in fp32; below that, where its weight gradients are off, every step rounded."""
    if x.dtype == torch.float32:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-6)
    return centred * scale * weight.to(x.dtype) + bias.to(x.dtype)


def make(shape, width, *, seed=0, dtype=torch.float32, weight_dtype=None, device="cpu"):
    weight_dtype = weight_dtype or dtype
    return {
        "x": 2 * normal(*shape, width, seed=seed, dtype=dtype, device=device) + 1,
        "weight": 1 + normal(width, seed=seed + 1, dtype=weight_dtype, device=device) / 4,
        "bias": normal(width, seed=seed + 2, dtype=weight_dtype, device=device),
    }


@pytest.mark.parametrize(
    "dtype, weight_dtype",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, dtype, weight_dtype):
    op = functools.partial(layer_norm, impl=impl)
    for shape, width in [((257,), width) for width in WIDTHS[1:]] + [(shape, 33) for shape in ROWS]:
        tensors = make(shape, width, dtype=dtype, weight_dtype=weight_dtype, device=device)
        check(op, eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_layouts(device, impl, layout):
    tensors = make((5, 13), 31, dtype=torch.bfloat16, weight_dtype=torch.float32, device=device)
    tensors["x"] = LAYOUTS[layout](tensors["x"])
    check(functools.partial(layer_norm, impl=impl), eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_one_feature_gives_the_bias(device, impl):
    tensors = make((4,), 1, device=device)
    assert torch.equal(layer_norm(**tensors, impl=impl), tensors["bias"].expand(4, 1))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_weight_gradients_are_summed_in_fp32(device, impl):
    """Four thousand ones: a bf16 sum would stop at 256, as PyTorch's own CPU backward does."""
    x = torch.tensor([[-1.0, 1.0]], dtype=torch.bfloat16, device=device).expand(4001, 2)
    weight, bias = (
        torch.ones(2, device=device, requires_grad=True),
        torch.zeros(2, device=device, requires_grad=True),
    )
    y = layer_norm(x, weight, bias, eps=0.0, impl=impl)
    y.backward(x)
    assert weight.grad.tolist() == [4001, 4001]
    assert bias.grad.tolist() == [-4001, 4001]


def test_oracle_against_the_standard_deviation():
    tensors = {name: tensor.double() for name, tensor in make((11,), 64).items()}
    x = tensors["x"]
    scaled = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)
    expected = scaled * tensors["weight"] + tensors["bias"]
    torch.testing.assert_close(oracle(**tensors), expected, rtol=1e-13, atol=1e-13)
    assert (oracle(**tensors, eps=0.1) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("device, impl", OF_ANY_DTYPE)
def test_gradcheck(device, impl):
    tensors = make((3,), 5, dtype=torch.float64, device=device)
    inputs = [tensor.requires_grad_() for tensor in tensors.values()]
    assert torch.autograd.gradcheck(functools.partial(layer_norm, impl=impl), inputs)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(layer_norm, impl=impl)
    tensors = make((50,), 64, dtype=torch.bfloat16, weight_dtype=torch.float32, device=device)
    require_same_bits(op, tensors, WANTED)
    require_one_graph(op, tensors, WANTED)


def test_bad_input_is_named():
    x, weight, bias = make((4,), 8).values()
    with pytest.raises(ValueError, match=r"layer_norm: weight must be \[D\] = \[8\], not \[7\]"):
        layer_norm(x, weight[:7], bias)
    with pytest.raises(ValueError, match=r"layer_norm: x must be \[\.\.\., D\] with D >= 1"):
        layer_norm(x[:, :0], weight[:0], bias[:0])
    with pytest.raises(TypeError, match="layer_norm: x must be floating point"):
        layer_norm(x.int(), weight, bias)
    with pytest.raises(ValueError, match="layer_norm: bias is on meta"):
        layer_norm(x, weight, bias.to("meta"))
    with pytest.raises(TypeError, match=r"layer_norm: impl=native takes .* not torch.float64"):
        layer_norm(x.double(), weight, bias, impl="native")
