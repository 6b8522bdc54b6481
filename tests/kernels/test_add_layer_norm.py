import functools

import pytest
import torch

from misplace.kernels import Impl, add_layer_norm, layer_norm
from misplace.kernels.add_layer_norm import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS, ROWS, WIDTHS

IMPLS = runnable(SUPPORTED)
OF_ANY_DTYPE = [(device, impl) for device, impl in IMPLS if impl in (Impl.TORCH, Impl.REFERENCE)]
WANTED = ["x", "branch", "weight", "bias"]
oracle = functools.partial(add_layer_norm, impl="reference")


def eager(x, branch, weight, bias, branch_scale=None):
    """Plain PyTorch; below fp32, where its weight gradients are off, every step rounded."""
    if branch_scale is not None:
        branch = branch * branch_scale.to(x.dtype)[:, None, None]
    total = x + branch
    if x.dtype == torch.float32:
        return total, torch.nn.functional.layer_norm(total, x.shape[-1:], weight, bias, 1e-6)
    centred = total - total.mean(dim=-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-6)
    return total, centred * scale * weight.to(x.dtype) + bias.to(x.dtype)


def make(shape, width, *, seed=0, dtype=torch.float32, weight_dtype=torch.float32, scaled=False, device="cpu"):
    tensors = {
        "x": 2 * normal(*shape, width, seed=seed, dtype=dtype, device=device) + 1,
        "branch": normal(*shape, width, seed=seed + 1, dtype=dtype, device=device),
        "weight": 1 + normal(width, seed=seed + 2, dtype=weight_dtype, device=device) / 4,
        "bias": normal(width, seed=seed + 3, dtype=weight_dtype, device=device),
    }
    if scaled:
        dropped = normal(shape[0], seed=seed + 4, device=device) < -0.5
        tensors["branch_scale"] = torch.where(dropped, 0.0, 1.25)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, dtype):
    op = functools.partial(add_layer_norm, impl=impl)
    for shape, width in [((257,), width) for width in WIDTHS[1:]] + [(shape, 33) for shape in ROWS]:
        check(op, eager, oracle, make(shape, width, dtype=dtype, device=device), WANTED)
    tensors = make((65,), 64, dtype=dtype, weight_dtype=dtype, device=device)
    check(op, eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_a_scale_per_image(device, impl, dtype):
    op = functools.partial(add_layer_norm, impl=impl)
    for shape, width in (((7, 13), 33), ((3, 50), 192), ((2, 0), 8)):
        check(op, eager, oracle, make(shape, width, dtype=dtype, scaled=True, device=device), WANTED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_layouts(device, impl, layout):
    tensors = make((5, 13), 31, dtype=torch.bfloat16, scaled=True, device=device)
    tensors |= {name: LAYOUTS[layout](tensors[name]) for name in ("x", "branch", "weight", "branch_scale")}
    check(functools.partial(add_layer_norm, impl=impl), eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_a_dropped_branch_is_not_there(device, impl):
    tensors = make((4, 5), 33, dtype=torch.bfloat16, device=device)
    tensors["branch_scale"] = torch.tensor([0.0, 1.0, 0.0, 2.0], device=device)
    total, _ = add_layer_norm(**tensors, impl=impl)
    assert torch.equal(total[0], tensors["x"][0]) and torch.equal(total[2], tensors["x"][2])
    assert not torch.equal(total[1], tensors["x"][1])
    dbranch = values_and_gradients(functools.partial(add_layer_norm, impl=impl), tensors, WANTED)["d branch"]
    assert not dbranch[[0, 2]].any() and dbranch[[1, 3]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] in (Impl.NATIVE, Impl.TRITON)])
def test_is_an_addition_and_our_layer_norm_to_the_bit(device, impl, dtype):
    tensors = make((37,), 192, dtype=dtype, device=device)
    x, branch, weight, bias = tensors.values()
    total, normed = add_layer_norm(**tensors, impl=impl)
    assert torch.equal(total, x + branch)
    assert torch.equal(normed, layer_norm(x + branch, weight, bias, impl=impl))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_either_output_alone(device, impl):
    """The other one's gradient is absent, not a tensor of zeros that somebody adds."""
    ours = functools.partial(add_layer_norm, impl=impl)
    for scaled in (False, True):
        tensors = make((3, 5), 33, scaled=scaled, device=device)
        for place in (0, 1):
            alone = [functools.partial(_one_of, op, place) for op in (ours, eager, oracle)]
            check(*alone, tensors, ["x", "branch"])


def _one_of(op, place, **tensors):
    return op(**tensors)[place]


@pytest.mark.parametrize("device, impl", IMPLS)
def test_sum_written_over_x(device, impl):
    for scaled in (False, True):
        tensors = make((6, 11), 40, dtype=torch.bfloat16, scaled=scaled, device=device)
        expected = add_layer_norm(**tensors, impl=impl)
        tensors["weight"].requires_grad_()
        with torch.no_grad():
            total, normed = add_layer_norm(**tensors, inplace=True, impl=impl)
        assert total.data_ptr() == tensors["x"].data_ptr()
        assert torch.equal(total, expected[0]) and torch.equal(tensors["x"], total) and torch.equal(normed, expected[1])
        with pytest.raises(ValueError, match="where no gradient is asked for"):
            add_layer_norm(**tensors, inplace=True, impl=impl)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_values_do_not_depend_on_gradients(device, impl):
    tensors = make((11,), 64, dtype=torch.bfloat16, device=device)
    expected = add_layer_norm(**tensors, impl=impl)
    tensors["bias"].requires_grad_()
    results = add_layer_norm(**tensors, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert results[1].requires_grad and not expected[1].requires_grad


@pytest.mark.parametrize("device, impl", OF_ANY_DTYPE)
def test_gradcheck(device, impl):
    tensors = make((2, 3), 5, dtype=torch.float64, weight_dtype=torch.float64, device=device)
    inputs = [tensor.requires_grad_() for tensor in tensors.values()]
    scale = torch.tensor([0.0, 1.25], dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(functools.partial(add_layer_norm, branch_scale=scale, impl=impl), inputs)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(add_layer_norm, impl=impl)
    for scaled in (False, True):
        tensors = make((5, 10), 64, dtype=torch.bfloat16, scaled=scaled, device=device)
        require_same_bits(op, tensors, WANTED)
        require_one_graph(op, tensors, WANTED)


def test_bad_input_is_named():
    tensors = make((4, 3), 8)
    x = tensors["x"]
    for change, error, message in (
        ({"x": x[..., :0]}, ValueError, r"x must be \[\.\.\., D\] with D >= 1"),
        ({"branch": x[:3]}, ValueError, r"branch must be as x = \[4, 3, 8\], not \[3, 3, 8\]"),
        ({"branch": x.bfloat16()}, TypeError, "branch must be torch.float32, not torch.bfloat16"),
        ({"weight": torch.ones(7)}, ValueError, r"weight must be \[D\] = \[8\], not \[7\]"),
        ({"bias": torch.ones(8, device="meta")}, ValueError, "bias is on meta"),
        ({"x": x.int()}, TypeError, "x must be floating point"),
        ({"branch_scale": torch.ones(3)}, ValueError, r"branch_scale must be \[B\] = \[4\], not \[3\]"),
        ({"branch_scale": torch.ones(4).bfloat16()}, TypeError, "branch_scale must be torch.float32"),
        ({"x": x[0], "branch": x[0], "branch_scale": torch.ones(3)}, ValueError, r"x must be \[B, N, D\] with branch"),
        ({"x": x[:, ::2], "branch": x[:, ::2], "inplace": True}, ValueError, "inplace needs a contiguous x"),
        (
            {"x": x.double(), "branch": x.double(), "impl": "native"},
            TypeError,
            "impl=native takes .* not torch.float64",
        ),
    ):
        with pytest.raises(error, match=f"add_layer_norm: {message}"):
            add_layer_norm(**(tensors | change))
