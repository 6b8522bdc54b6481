import functools

import pytest
import torch
from torch import nn

from misplace.kernels import linear, pack_weight
from misplace.kernels.linear import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS, ROWS

IMPLS = runnable(SUPPORTED)
WANTED = ["x", "weight", "bias"]
WIDTHS = [(1, 1), (7, 31), (64, 33), (192, 129)]
oracle = functools.partial(linear, impl="reference")


def eager(x, weight, bias, weight_copy=None, bias_copy=None):
    """Plain autocast-like PyTorch: the masters cast to the dtype of x."""
    return x @ weight.to(x.dtype).T + bias.to(x.dtype)


def make(shape, inputs, outputs, *, dtype=torch.float32, device="cpu", copies=False):
    """fp32 masters; with copies, masters that the dtype of x holds exactly, equal to their copies."""
    tensors = {
        "x": normal(*shape, inputs, seed=0, dtype=dtype, device=device),
        "weight": normal(outputs, inputs, seed=1, device=device) / inputs**0.5,
        "bias": normal(outputs, seed=2, device=device),
    }
    if copies:
        for name in ("weight", "bias"):
            tensors[f"{name}_copy"] = tensors[name].to(dtype)
            tensors[name] = tensors[f"{name}_copy"].float()
    return tensors


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, dtype, copies):
    op = functools.partial(linear, impl=impl)
    exact = exact_with_masters if copies else oracle
    for shape, (inputs, outputs) in [((37,), w) for w in WIDTHS] + [(shape, (33, 7)) for shape in ROWS]:
        tensors = make(shape, inputs, outputs, dtype=dtype, device=device, copies=copies)
        check(op, eager, exact, tensors, WANTED)


def exact_with_masters(x, weight, bias, weight_copy, bias_copy):
    """An oracle that never sees the copies: make() gives masters equal to them."""
    return nn.functional.linear(x, weight, bias)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_layouts(device, impl, layout):
    tensors = make((3, 13), 31, 7, dtype=torch.bfloat16, device=device, copies=True)
    tensors["x"] = LAYOUTS[layout](tensors["x"])
    check(functools.partial(linear, impl=impl), eager, exact_with_masters, tensors, WANTED)


def test_oracle_against_a_sum_of_products():
    x, weight, bias = (tensor.double() for tensor in make((3,), 5, 4).values())
    expected = (x[:, None, :] * weight[None]).sum(-1) + bias
    torch.testing.assert_close(oracle(x, weight, bias), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(oracle(x, weight, None), expected - bias, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_value_from_the_copy_and_gradient_to_the_master(device, impl):
    x = normal(6, 8, seed=0, dtype=torch.bfloat16, device=device).requires_grad_()
    weight = torch.zeros(5, 8, device=device, requires_grad=True)
    bias = torch.zeros(5, device=device, requires_grad=True)
    weight_copy = normal(5, 8, seed=1, dtype=torch.bfloat16, device=device)
    bias_copy = torch.ones(5, dtype=torch.bfloat16, device=device)
    y = linear(x, weight, bias, weight_copy=weight_copy, bias_copy=bias_copy, impl=impl)
    assert y.dtype == torch.bfloat16 and y.abs().min() > 0
    y.sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == torch.float32 and x.grad.dtype == torch.bfloat16
    assert torch.equal(bias.grad, torch.full_like(bias, 6))
    torch.testing.assert_close(x.grad, weight_copy.float().sum(0).expand(6, 8).bfloat16(), rtol=2**-7, atol=0)
    column_sums = x.detach().float().sum(0).expand(5, 8)
    torch.testing.assert_close(weight.grad, column_sums, rtol=2**-7, atol=0)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_bias_gradient_is_summed_in_fp32(device, impl):
    """Four thousand ones: a bf16 sum would stop at 256."""
    x = torch.ones(4001, 3, dtype=torch.bfloat16, device=device)
    weight, bias = torch.zeros(2, 3, device=device), torch.zeros(2, device=device, requires_grad=True)
    copies = {"weight_copy": weight.bfloat16(), "bias_copy": bias.detach().bfloat16()}
    linear(x, weight, bias, **copies, impl=impl).sum().backward()
    assert bias.grad.tolist() == [4001, 4001]


@pytest.mark.parametrize("device, impl", IMPLS)
def test_frozen_inputs_get_no_gradient(device, impl):
    x, weight, bias, weight_copy, bias_copy = make((4,), 3, 2, device=device, copies=True).values()
    linear(x, weight, bias.requires_grad_(), weight_copy=weight_copy, bias_copy=bias_copy, impl=impl).sum().backward()
    assert x.grad is None and weight.grad is None and bias.grad.tolist() == [4, 4]


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("device, impl", [each for each in IMPLS if each[1] != "onednn"])  # it has no fp64
def test_gradcheck(device, impl, copies):
    x, weight, bias = (tensor.double().requires_grad_() for tensor in make((3,), 5, 4, device=device).values())

    def function(x, weight, bias):
        given = {"weight_copy": weight.detach(), "bias_copy": bias.detach()} if copies else {}
        return linear(x, weight, bias, **given, impl=impl)

    if copies:  # the value depends on the copies alone, so numeric differences move the copy with the master
        y = function(x, weight, bias)
        plain = linear(x, weight, bias, impl="reference")
        cotangent = normal(3, 4, seed=9, dtype=torch.float64, device=device)
        got, expected = (torch.autograd.grad(out, (x, weight, bias), cotangent) for out in (y, plain))
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    else:
        assert torch.autograd.gradcheck(function, (x, weight, bias))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(linear, impl=impl)
    tensors = make((50,), 64, 33, dtype=torch.bfloat16, device=device, copies=True)
    require_same_bits(op, tensors, WANTED)
    require_one_graph(op, tensors, WANTED)


needs_onednn = pytest.mark.skipif(("cpu", "onednn") not in IMPLS, reason="no oneDNN with bf16 on this CPU")


@needs_onednn
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weight_against_fp64(dtype, copies):
    def op(x, weight, bias, weight_copy=None, bias_copy=None):
        packed = pack_weight(weight.to(x.dtype) if weight_copy is None else weight_copy, x[..., 0].numel())
        return linear(x, weight, bias, weight_copy=weight_copy, bias_copy=bias_copy, packed=packed)

    exact = exact_with_masters if copies else oracle
    for shape, (inputs, outputs) in [((37,), w) for w in WIDTHS] + [(shape, (33, 7)) for shape in ROWS]:
        check(op, eager, exact, make(shape, inputs, outputs, dtype=dtype, copies=copies), [])


@needs_onednn
def test_packed_weight_is_a_snapshot():
    weight, x = normal(8, 16, seed=0), normal(4, 16, seed=1)
    packed = pack_weight(weight, 4)
    before = linear(x, weight, None, packed=packed)
    assert torch.equal(linear(x, torch.zeros(8, 16), None, packed=packed), before) and before.abs().min() > 0


def test_only_onednn_packs():
    assert pack_weight(torch.ones(2, 3), 4, impl="torch") is None
    assert pack_weight(torch.ones(2, 3, dtype=torch.float64), 4) is None


@needs_onednn
def test_bad_input_of_packed_is_named():
    weight = torch.ones(5, 8)
    packed = pack_weight(weight, 4)
    with pytest.raises(ValueError, match=r"linear: packed must be \[O, I\] = \[4, 8\], not \[5, 8\]"):
        linear(torch.ones(4, 8), weight[:4], None, packed=packed)
    with pytest.raises(TypeError, match=r"linear: packed must be torch.bfloat16"):
        linear(torch.ones(4, 8, dtype=torch.bfloat16), weight, None, packed=packed)
    with pytest.raises(ValueError, match="packed is for where no gradient is asked for"):
        linear(torch.ones(4, 8), weight.requires_grad_(), None, packed=packed)
    with pytest.raises(TypeError, match=r"linear: impl=onednn takes torch.float32, torch.bfloat16, not torch.float64"):
        linear(torch.ones(4, 8).double(), torch.ones(5, 8).double(), None, impl="onednn")


def test_bad_input_is_named():
    x, weight, bias, weight_copy, bias_copy = make((4,), 8, 5, dtype=torch.bfloat16, copies=True).values()
    with pytest.raises(ValueError, match=r"linear: x must be \[\.\.\., I\] with I = 8, not \[4, 7\]"):
        linear(x[:, :7], weight, bias)
    with pytest.raises(ValueError, match=r"linear: bias must be \[O\] = \[5\], not \[4\]"):
        linear(x, weight, bias[:4])
    with pytest.raises(ValueError, match="linear: weight_copy is given, so bias needs its bias_copy"):
        linear(x, weight, bias, weight_copy=weight_copy)
    with pytest.raises(ValueError, match="linear: bias_copy needs both bias and weight_copy"):
        linear(x, weight, None, weight_copy=weight_copy, bias_copy=bias_copy)
    with pytest.raises(TypeError, match=r"linear: weight_copy must be torch.bfloat16, not torch.float16"):
        linear(x, weight, bias, weight_copy=weight_copy.half(), bias_copy=bias_copy)
    with pytest.raises(ValueError, match="linear: weight is on meta"):
        linear(x, weight.to("meta"), bias)
