"""The CPU kernels of attention: each instruction set that this CPU has, threads, and what the registered ops check."""

import functools

import pytest
import torch
from torch.library import opcheck

from misplace.kernels import Impl, ImplUnavailableError, attention
from misplace.kernels.attention import native
from misplace.kernels.impl import choose
from misplace.kernels.testing.compare import check
from misplace.kernels.testing.inputs import normal

OPS = torch.ops.misplace
ISAS = ("plain", "avx2", "avx512", "avx512_bf16", "amx")
oracle = functools.partial(attention, impl="reference")


def require_isa(isa: str) -> None:
    choose("attention", Impl.NATIVE, torch.device("cpu"), {"cpu": (Impl.NATIVE,)})
    try:
        OPS.attention_packed(torch.zeros(0, 1, 3), 1, 1.0, False, isa)
    except ValueError as error:
        pytest.skip(str(error))


def eager(qkv, num_heads):
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_against_fp64(isa, dtype):
    require_isa(isa)
    for tokens, heads, head_dim in ((13, 3, 64), (50, 1, 32), (67, 2, 33), (197, 1, 64)):
        scale = head_dim**-0.5
        check(
            lambda qkv, heads=heads, scale=scale: native.attention_packed(qkv, heads, scale, isa=isa),
            functools.partial(eager, num_heads=heads),
            functools.partial(oracle, num_heads=heads),
            {"qkv": normal(2, tokens, 3 * heads * head_dim, seed=tokens, dtype=dtype)},
            ["qkv"],
        )


@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads(isa, dtype):
    require_isa(isa)
    qkv = normal(5, 67, 3 * 2 * 32, seed=1, dtype=dtype).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = native.attention_packed(qkv, 2, 0.2, isa=isa)
            results.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", ISAS)
def test_scale_of_any_sign_and_no_queries(isa):
    require_isa(isa)
    q, k, v = (30 * normal(2, 9, 2, 32, seed=seed) for seed in range(3))
    torch.testing.assert_close(native.attention(q, k, v, -1.0, isa=isa), native.attention(-q, k, v, 1.0, isa=isa))
    inputs = [tensor.requires_grad_() for tensor in (q[:, :0].clone(), k, v)]
    gradients = torch.autograd.grad(native.attention(*inputs, 1.0, isa=isa).sum(), inputs)
    assert [g.count_nonzero().item() for g in gradients] == [0, 0, 0]
    assert [g.shape for g in gradients] == [t.shape for t in inputs]


def test_nan_stays_in_its_head():
    for dtype in native.DTYPES:
        qkv = normal(2, 9, 3 * 2 * 32, seed=1, dtype=dtype)
        qkv[1, 3, 40] = float("nan")  # head 1 of image 1, a query
        out = attention(qkv, num_heads=2, impl="native")
        assert out.isnan().nonzero().tolist() == [[1, 3, c] for c in range(32, 64)]


def test_views_of_packed_qkv_with_one_query_are_read_in_place():
    qkv = normal(3, 50, 3 * 2 * 32, seed=1, dtype=torch.bfloat16)
    q, k, v = qkv.unflatten(-1, (3, 2, 32)).unbind(2)
    one, every = attention(q[:, :1], k, v, impl="native"), attention(qkv, num_heads=2, impl="native")
    assert torch.equal(one.flatten(2), every[:, :1])


def test_only_a_backward_keeps_statistics():
    qkv = normal(1, 4, 3 * 8, seed=1)
    assert OPS.attention_packed(qkv, 1, 1.0, False, "")[1].numel() == 0
    assert OPS.attention_packed(qkv, 1, 1.0, True, "")[1].shape == (1, 1, 2, 4)
    with pytest.raises(ValueError, match="for_backward is False, and an input requires a gradient"):
        OPS.attention_packed(qkv.requires_grad_(), 1, 1.0, False, "")


@pytest.mark.parametrize("dtype", native.DTYPES)
def test_opcheck(dtype):
    require_isa("plain")
    qkv = normal(2, 5, 3 * 2 * 8, seed=1, dtype=dtype)
    q, k, v = qkv.unflatten(-1, (3, 2, 8)).unbind(2)
    opcheck(OPS.attention_packed.default, (qkv.clone().requires_grad_(), 2, 0.3, True, ""))
    separate = [t.clone().requires_grad_() for t in (q[:, :2], k, v)]
    opcheck(OPS.attention.default, (*separate, 0.3, True, ""))
    _, statistics = OPS.attention_packed(qkv, 2, 0.3, True, "")
    opcheck(OPS.attention_packed_backward.default, (normal(2, 5, 16, seed=2, dtype=dtype), qkv, statistics, 2, 0.3, ""))
    opcheck(OPS.attention_backward.default, (torch.ones_like(q), q, k, v, statistics, 0.3, ""))


def test_other_dtypes():
    qkv = normal(1, 3, 12, seed=1, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"impl=native takes torch.float32 or torch.bfloat16, not torch.float64"):
        attention(qkv, num_heads=2, impl="native")
    assert torch.equal(attention(qkv, num_heads=2), attention(qkv, num_heads=2, impl="torch"))
    with pytest.raises(ImplUnavailableError, match="unknown impl"):
        attention(qkv, num_heads=2, impl="fastest")


def test_the_registered_ops_check_for_themselves():
    require_isa("plain")
    q = normal(2, 3, 2, 8, seed=1)
    with pytest.raises(TypeError, match="native takes float32 or bfloat16"):
        OPS.attention(q.double(), q.double(), q.double(), 1.0, False, "")
    with pytest.raises(TypeError, match="one dtype"):
        OPS.attention(q, q.bfloat16(), q, 1.0, False, "")
    with pytest.raises(ValueError, match="do not fit"):
        OPS.attention(q, q[:1], q[:1], 1.0, False, "")
    with pytest.raises(ValueError, match="must be as q"):
        OPS.attention_backward(q[:, :1], q, q, q, torch.zeros(2, 2, 2, 3), 1.0, "")
    with pytest.raises(ValueError, match="not those of a forward"):
        OPS.attention_backward(q, q, q, q, torch.zeros(2, 2, 2, 0), 1.0, "")
    with pytest.raises(ValueError, match=r"qkv must be \[B, N, 3"):
        OPS.attention_packed(torch.zeros(1, 2, 7), 1, 1.0, False, "")
    with pytest.raises(ValueError, match="unknown instruction set sse9"):
        OPS.attention_packed(torch.zeros(1, 2, 6), 1, 1.0, False, "sse9")
