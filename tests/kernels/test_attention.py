import functools

import pytest
import torch
from torch import nn

from misplace.kernels import Impl, attention
from misplace.kernels.attention import SUPPORTED
from misplace.kernels.attention.limits import refusal
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import HEAD_DIMS, LAYOUTS, SEQUENCE_LENGTHS

# the others are in test_attention_adapters.py
OWN = (Impl.REFERENCE, Impl.TORCH, Impl.NATIVE, Impl.TRITON)
IMPLS = [(device, impl) for device, impl in runnable(SUPPORTED) if impl in OWN]
OF_ANY_SHAPE = [(device, impl) for device, impl in IMPLS if impl is not Impl.TRITON]
OF_ANY_DTYPE = [(device, impl) for device, impl in OF_ANY_SHAPE if impl is not Impl.NATIVE]
DTYPES = [torch.float32, torch.bfloat16]
oracle = functools.partial(attention, impl="reference")


def eager(q, k, v, scale=None):
    """Plain PyTorch in the dtype of q: scores, probabilities and output rounded."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


def eager_packed(qkv, num_heads):
    batch, tokens, width = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, num_heads, width // (3 * num_heads)).unbind(2)
    return eager(q, k, v).reshape(batch, tokens, width // 3)


def packed(batch, tokens, heads, head_dim, *, dtype=torch.float32, device="cpu"):
    return {"qkv": normal(batch, tokens, 3 * heads * head_dim, seed=tokens, dtype=dtype, device=device)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [n for n in SEQUENCE_LENGTHS if n > 1])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, tokens, dtype):
    for heads, head_dim in ((1, 64), (3, 32)):
        if refusal(impl, device, dtype, head_dim, tokens, False):
            continue  # of heads of 64 only
        op = functools.partial(attention, num_heads=heads, impl=impl)
        exact = functools.partial(oracle, num_heads=heads)
        plain = functools.partial(eager_packed, num_heads=heads)
        check(op, plain, exact, packed(2, tokens, heads, head_dim, dtype=dtype, device=device), ["qkv"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("device, impl", OF_ANY_SHAPE)
def test_separate_queries_and_keys(device, impl, head_dim, dtype):
    for queries, keys in ((1, 13), (31, 7), (5, 2)):
        tensors = {
            "q": normal(2, queries, 3, head_dim, seed=1, dtype=dtype, device=device),
            "k": normal(2, keys, 3, head_dim, seed=2, dtype=dtype, device=device),
            "v": normal(2, keys, 3, head_dim, seed=3, dtype=dtype, device=device),
        }
        check(
            lambda q, k, v: attention(q, k, v, scale=0.3, impl=impl),
            functools.partial(eager, scale=0.3),
            lambda q, k, v: oracle(q, k, v, scale=0.3),
            tensors,
            ["q", "k", "v"],
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_layouts_and_no_images(device, impl, layout):
    for batch in (0, 3):
        tensors = {"qkv": LAYOUTS[layout](packed(batch, 13, 2, 32, dtype=torch.bfloat16, device=device)["qkv"])}
        op, exact, plain = (functools.partial(f, num_heads=2) for f in (attention, oracle, eager_packed))
        check(functools.partial(op, impl=impl), plain, exact, tensors, ["qkv"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_one_key_gives_its_value(device, impl, dtype):
    """The exact gradient of q and k is 0; what is left is the rounding of two equal sums of d terms."""
    head_dim = 32
    q, k, v, dy = (
        normal(3, tokens, 2, head_dim, seed=seed, dtype=dtype, device=device)
        for seed, tokens in enumerate((5, 1, 1, 5))
    )
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    y = attention(*inputs, impl=impl)
    assert torch.equal(y, v.expand_as(y))
    dq, dk, _ = torch.autograd.grad(y, inputs, dy)
    rounding = 2 * head_dim * torch.finfo(dtype).eps * dy.abs().max() * v.abs().max()
    assert dq.abs().max() <= rounding * k.abs().max() * head_dim**-0.5
    assert dk.abs().max() <= 5 * rounding * q.abs().max() * head_dim**-0.5


@pytest.mark.parametrize("device, impl", IMPLS)
def test_large_scores_do_not_overflow(device, impl):
    qkv = 100 * packed(1, 13, 1, 32, device=device)["qkv"]
    assert attention(qkv, num_heads=1, impl=impl).isfinite().all()


def test_oracle_against_multihead_attention():
    heads, width = 3, 24
    layer = nn.MultiheadAttention(width, heads, bias=False, batch_first=True, dtype=torch.float64)
    x = normal(2, 7, width, seed=1, dtype=torch.float64)
    qkv = x @ layer.in_proj_weight.T
    out = oracle(qkv, num_heads=heads) @ layer.out_proj.weight.T
    expected, _ = layer(x, x, x, need_weights=False)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_packed_equals_separate():
    qkv = packed(2, 5, 3, 8)["qkv"]
    separate = attention(*qkv.view(2, 5, 3, 3, 8).unbind(2), impl="reference")
    assert torch.equal(oracle(qkv, num_heads=3), separate.flatten(2))


@pytest.mark.parametrize("device, impl", OF_ANY_DTYPE)
def test_gradcheck(device, impl):
    qkv = packed(2, 3, 2, 2, device=device)["qkv"].double().requires_grad_()
    assert torch.autograd.gradcheck(functools.partial(attention, num_heads=2, impl=impl), qkv)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl, dtype):
    op = functools.partial(attention, num_heads=2, impl=impl)
    tensors = packed(2, 50, 2, 32, dtype=dtype, device=device)
    require_same_bits(op, tensors, ["qkv"])
    require_one_graph(op, tensors, ["qkv"])


def test_bad_input_is_named():
    qkv = packed(2, 5, 2, 8)["qkv"]
    q, k, v = qkv.view(2, 5, 3, 2, 8).unbind(2)
    with pytest.raises(ValueError, match="qkv has width 48, not 3 \\* 5 heads"):
        attention(qkv, num_heads=5)
    with pytest.raises(ValueError, match="packed qkv needs num_heads >= 1, not None"):
        attention(qkv)
    with pytest.raises(ValueError, match="give k and v together"):
        attention(q, k)
    with pytest.raises(ValueError, match=r"v must be \[B, M, H, D / H\] = \[2, 5, 2, 8\], not \[2, 4, 2, 8\]"):
        attention(q, k, v[:, :4])
    with pytest.raises(ValueError, match="num_heads is 3, q has 2 heads"):
        attention(q, k, v, num_heads=3)
    with pytest.raises(ValueError, match="no tokens to attend to"):
        attention(qkv[:, :0], num_heads=2)
    with pytest.raises(TypeError, match=r"k must be torch.float32, not torch.float64"):
        attention(q, k.double(), v)
    with pytest.raises(TypeError, match="qkv must be floating point"):
        attention(qkv.int(), num_heads=2)
    with pytest.raises(ValueError, match="v is on meta"):
        attention(q, k, v.to("meta"))
