"""attention with cu_seqlens: sequences of mixed lengths in one dimension of tokens."""

import functools
import itertools

import pytest
import torch
from torch.library import opcheck

from misplace.kernels import Impl, attention
from misplace.kernels.attention import SUPPORTED, native
from misplace.kernels.attention.limits import refusal
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS

# those that take fp32 and heads of 32; xformers and sdpa-flash are in test_attention_adapters.py
IMPLS = [pair for pair in runnable(SUPPORTED) if pair[1] in (Impl.REFERENCE, Impl.TORCH, Impl.NATIVE, Impl.TRITON)]
DTYPES = [torch.float32, torch.bfloat16]
# crops of a multi-crop step, primes and ones, empty ones in every place, a single one
LENGTHS = [(197, 197, 37, 37, 37), (13, 1, 2, 31, 1), (0, 5, 0, 0, 7, 0), (17,)]


def bounds(lengths, device="cpu"):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def case(lengths, heads, head_dim, dtype, device):
    """The packed tokens, and the arguments that go with them."""
    tensors = {"qkv": normal(sum(lengths), 3 * heads * head_dim, seed=sum(lengths), dtype=dtype, device=device)}
    options = dict(num_heads=heads, cu_seqlens=bounds(lengths, device), max_seqlen=max(lengths, default=0))
    return tensors, options


def eager(qkv, num_heads, cu_seqlens, max_seqlen):
    """Plain PyTorch, one sequence after another."""
    outs = []
    for tokens in qkv.split(cu_seqlens.diff().tolist()):
        q, k, v = tokens.unflatten(-1, (3, num_heads, -1)).permute(1, 2, 0, 3).unbind(0)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        outs.append((scores.softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
    return torch.cat(outs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, lengths, dtype):
    for heads, head_dim in ((1, 64), (3, 32)):
        if refusal(impl, device, dtype, head_dim, max(lengths), True):
            continue  # of heads of 64 only
        tensors, options = case(lengths, heads, head_dim, dtype, device)
        op, exact = (functools.partial(attention, impl=i, **options) for i in (impl, "reference"))
        check(op, functools.partial(eager, **options), exact, tensors, ["qkv"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_separate_in_any_layout(device, impl, layout):
    lengths = (5, 13, 0, 2)
    tensors = {
        name: LAYOUTS[layout](normal(20, 2, 32, seed=seed, device=device)) for seed, name in enumerate(("q", "k", "v"))
    }
    options = dict(cu_seqlens=bounds(lengths, device), max_seqlen=13)

    def packed(q, k, v):
        return eager(torch.stack([q, k, v], dim=1).flatten(1), 2, **options).unflatten(-1, (2, 32))

    def ours(q, k, v, impl=impl):
        return attention(q, k, v, impl=impl, **options)

    check(ours, packed, functools.partial(ours, impl="reference"), tensors, ["q", "k", "v"])


def test_the_reference_is_one_call_per_sequence():
    tensors, options = case((5, 3), 2, 8, torch.float64, "cpu")
    parts = [attention(part[None], num_heads=2, impl="reference")[0] for part in tensors["qkv"].split([5, 3])]
    assert torch.equal(attention(**tensors, **options, impl="reference"), torch.cat(parts))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_nan_stays_in_its_sequence(device, impl):
    tensors, options = case((4, 0, 6, 3), 1, 32, torch.float32, device)
    tensors["qkv"][5] = float("nan")  # in the third
    results = values_and_gradients(functools.partial(attention, impl=impl, **options), tensors, ["qkv"])
    for result in results.values():
        assert result.isnan().any(dim=1).nonzero().flatten().tolist() == list(range(4, 10))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_no_sequences_and_no_tokens(device, impl):
    for lengths in ((), (0,), (0, 0)):
        tensors, options = case(lengths, 2, 32, torch.float32, device)
        results = values_and_gradients(functools.partial(attention, impl=impl, **options), tensors, ["qkv"])
        assert [tuple(result.shape) for result in results.values()] == [(0, 64), (0, 192)]


@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] is not Impl.REFERENCE])
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    tensors, options = case((50, 7, 13), 2, 32, torch.bfloat16, device)
    op = functools.partial(attention, impl=impl, **options)
    require_same_bits(op, tensors, ["qkv"])
    require_one_graph(op, tensors, ["qkv"])


def test_without_max_seqlen_a_cpu_reads_the_lengths():
    tensors, options = case((5, 9, 2), 2, 32, torch.float32, "cpu")
    for _, impl in runnable({"cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE)}):
        expected = attention(**tensors, **options, impl=impl)
        assert torch.equal(attention(**tensors, **options | {"max_seqlen": None}, impl=impl), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] is Impl.NATIVE])
def test_native_bits_do_not_depend_on_threads(device, impl, dtype):
    tensors, options = case((197, 3, 0, 37, 50, 1), 3, 32, dtype, device)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(functools.partial(attention, impl=impl, **options), tensors, ["qkv"]))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(result, results[0][name]) for name, result in other.items())


@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] is Impl.NATIVE])
def test_native_equals_a_call_per_length_to_the_bit(device, impl):
    tensors, options = case((50, 50, 37), 2, 32, torch.bfloat16, device)
    each = [
        attention(part.unflatten(0, (images, -1)), num_heads=2, impl=impl).flatten(0, 1)
        for images, part in zip((2, 1), tensors["qkv"].split([100, 37]))
    ]
    assert torch.equal(attention(**tensors, **options, impl=impl), torch.cat(each))


@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] is Impl.NATIVE])
def test_native_opcheck_and_its_own_checks(device, impl):
    ops = torch.ops.misplace
    qkv, cu = normal(9, 3 * 2 * 8, seed=1), bounds((4, 0, 5))
    q, k, v = qkv.unflatten(-1, (3, 2, 8)).unbind(-3)
    opcheck(ops.attention_packed.default, (qkv.clone().requires_grad_(), 2, 0.3, True, "", cu))
    opcheck(ops.attention.default, (*(t.clone().requires_grad_() for t in (q, k, v)), 0.3, True, "", cu))
    _, statistics = ops.attention_packed(qkv, 2, 0.3, True, "", cu)
    opcheck(ops.attention_packed_backward.default, (normal(9, 16, seed=2), qkv, statistics, 2, 0.3, "", cu))
    opcheck(ops.attention_backward.default, (torch.ones_like(q), q, k, v, statistics, 0.3, "", cu))
    for wrong, words in ((bounds((4, 4)), "not from 0 to the 9"), (bounds((10, -1)), "decrease"), (cu[:0], "S \\+ 1")):
        with pytest.raises(ValueError, match=words):
            ops.attention_packed(qkv, 2, 0.3, False, "", wrong)
    with pytest.raises(TypeError, match="cu_seqlens must be int32"):
        ops.attention_packed(qkv, 2, 0.3, False, "", cu.long())
    with pytest.raises(ValueError, match="with cu_seqlens need q"):
        ops.attention(q, k[:3], v[:3], 0.3, False, "", cu)
    assert native.attention_packed(qkv, 2, 0.3, cu_seqlens=cu).shape == (9, 16)


def test_bad_bounds_are_named():
    tensors, options = case((5, 3), 2, 8, torch.float32, "cpu")
    op = functools.partial(attention, tensors["qkv"])

    def bad(error, match, **changes):
        with pytest.raises(error, match=match):
            op(**options | changes)

    bad(ValueError, "go from 0 to 7, not from 0 to the 8 tokens", cu_seqlens=bounds((5, 2)))
    bad(ValueError, "go from 1 to 4, not from 0 to the 8", cu_seqlens=bounds((5, 3))[1:] - 4)
    bad(ValueError, "cu_seqlens decrease", cu_seqlens=bounds((9, -1)))
    bad(ValueError, "max_seqlen is 4, a sequence has 5 tokens", max_seqlen=4)
    bad(ValueError, r"cu_seqlens must be \[S \+ 1\], not \[0\]", cu_seqlens=bounds(())[:0])
    bad(TypeError, "cu_seqlens must be torch.int32, not torch.int64", cu_seqlens=bounds((5, 3)).long())
    bad(ValueError, r"cu_seqlens must be \[S \+ 1\], not \[1, 3\]", cu_seqlens=bounds((5, 3))[None])
    with pytest.raises(ValueError, match=r"qkv must be \[T, 3 \* D\], not \[1, 8, 48\]"):
        attention(tensors["qkv"][None], **options)
    with pytest.raises(ValueError, match="max_seqlen goes with cu_seqlens"):
        attention(tensors["qkv"][None], num_heads=2, max_seqlen=8)
    q, k, v = tensors["qkv"].unflatten(-1, (3, 2, 8)).unbind(1)
    with pytest.raises(ValueError, match=r"k must be \[T, H, D / H\] = \[8, 2, 8\], not \[3, 2, 8\]"):
        attention(q, k[:3], v, cu_seqlens=options["cu_seqlens"])
    meta = tensors["qkv"].to("meta")
    with pytest.raises(ValueError, match=r"on meta, or under torch.compile, cu_seqlens need"):
        attention(meta, num_heads=2, cu_seqlens=options["cu_seqlens"].to("meta"))
