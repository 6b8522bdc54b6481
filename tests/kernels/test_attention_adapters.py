"""SDPA held to one backend, and xformers: what they are called with, and what they say where they cannot run."""

import functools
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from misplace.kernels import Impl, ImplUnavailableError, attention
from misplace.kernels.attention import SUPPORTED, sdpa, xformers
from misplace.kernels.attention.limits import refusal
from misplace.kernels.impl import why_unavailable
from misplace.kernels.testing.compare import check, require_one_graph
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal

ADAPTERS = (Impl.SDPA_FLASH, Impl.SDPA_CUDNN, Impl.SDPA_EFFICIENT, Impl.XFORMERS)
HERE = [pair for pair in runnable(SUPPORTED) if pair[1] in ADAPTERS]
CPU = torch.device("cpu")
BOUNDS = torch.tensor([0, 4, 4, 9], dtype=torch.int32)


def separate(device="cpu", dtype=torch.bfloat16, batch=2):
    return {name: normal(batch, 37, 2, 32, seed=i, dtype=dtype, device=device) for i, name in enumerate("qkv")}


def eager(q, k, v):
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return ((q @ k.transpose(-1, -2) * 0.3).softmax(dim=-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("device, impl", HERE)
def test_against_fp64_and_in_one_graph(device, impl):
    op, exact = (functools.partial(attention, scale=0.3, impl=i) for i in (impl, "reference"))

    def ours(q, k, v):
        return op(q, k, v)

    check(ours, eager, lambda q, k, v: exact(q, k, v), separate(device), ["q", "k", "v"])
    require_one_graph(ours, separate(device), ["q", "k", "v"])
    qkv = torch.stack(list(separate(device).values()), dim=2).flatten(2)
    packed = attention(qkv, num_heads=2, impl=impl)
    assert torch.equal(packed, attention(**_renamed(separate(device)), impl=impl).flatten(2))


def _renamed(tensors):
    return {"qkv": tensors["q"], "k": tensors["k"], "v": tensors["v"]}


@pytest.mark.parametrize("impl", list(sdpa.BACKENDS))
def test_sdpa_is_called_with_its_backend_and_our_layout_exchanged(impl, monkeypatch):
    called = []

    def sdpa_kernel(backend):
        called.append(backend)
        return torch.no_grad()

    def stand_in(q, k, v, scale):
        called.append((tuple(q.shape), scale))
        return q + 2 * k + 4 * v

    monkeypatch.setattr(sdpa, "sdpa_kernel", sdpa_kernel)
    monkeypatch.setattr(F, "scaled_dot_product_attention", stand_in)
    q, k, v = separate().values()
    assert torch.equal(sdpa.attention(q, k, v, 0.3, impl), q + 2 * k + 4 * v)
    assert called == [sdpa.BACKENDS[impl], ((2, 2, 37, 32), 0.3)]


def test_flash_of_mixed_lengths_gets_the_bounds_and_a_scale_by_way_of_q(monkeypatch):
    module, called = types.ModuleType("varlen"), []
    module.varlen_attn = lambda q, k, v, *rest: called.append((q, rest)) or v
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    q, k, v = (normal(9, 2, 64, seed=i) for i in range(3))
    assert sdpa.mixed_attention(q, k, v, 0.125, BOUNDS, 5) is v
    sdpa.mixed_attention(q, k, v, 0.25, BOUNDS, 5)
    (as_it_is, rest), (twice, _) = called
    assert as_it_is is q and torch.equal(twice, 2 * q)
    assert rest[0] is rest[1] is BOUNDS and rest[2:] == (5, 5)


@pytest.fixture
def stand_in(monkeypatch):
    """xformers with an attention by SDPA and masks that are the lengths they were made of; gives the calls."""
    calls = []

    class BlockDiagonalMask:
        made = 0

        @classmethod
        def from_seqlens(cls, lengths, *, device):
            cls.made += 1
            return tuple(lengths)

    def memory_efficient_attention(q, k, v, attn_bias=None, scale=None):
        calls.append((tuple(q.shape), attn_bias, BlockDiagonalMask.made))
        if attn_bias is None:
            return eager(q, k, v)
        parts = [eager(*each) for each in zip(*(x.split(list(attn_bias), dim=1) for x in (q, k, v)))]
        return torch.cat(parts, dim=1)

    modules = {"xformers": {}, "xformers.ops": {"memory_efficient_attention": memory_efficient_attention}}
    modules |= {"xformers.ops.fmha": {}, "xformers.ops.fmha.attn_bias": {"BlockDiagonalMask": BlockDiagonalMask}}
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    xformers.block_diagonal.cache_clear()
    yield calls
    xformers.block_diagonal.cache_clear()


def test_xformers_takes_our_layout(stand_in):
    q, k, v = separate(dtype=torch.float32).values()
    torch.testing.assert_close(xformers.attention(q, k, v, 0.3), attention(q, k, v, scale=0.3, impl="reference"))
    assert stand_in == [((2, 37, 2, 32), None, 0)]


def test_xformers_makes_a_mask_once_per_lengths(stand_in):
    q, k, v = (normal(9, 2, 32, seed=i) for i in range(3))
    bounds = BOUNDS.clone()
    expected = attention(q, k, v, scale=0.3, cu_seqlens=bounds, impl="reference")
    for cu_seqlens in (bounds, bounds, bounds.clone()):
        torch.testing.assert_close(xformers.mixed_attention(q, k, v, 0.3, cu_seqlens, 5), expected)
    assert stand_in == [((1, 9, 2, 32), (4, 5), 1)] * 3  # the empty one is left out
    bounds[1:3] = 2
    xformers.mixed_attention(q, k, v, 0.3, bounds, 7)
    assert stand_in[-1] == ((1, 9, 2, 32), (2, 7), 2)


def test_what_cannot_run_says_why():
    qkv = torch.zeros(1, 2, 96)
    for impl in (Impl.SDPA_CUDNN, Impl.SDPA_EFFICIENT, Impl.XFORMERS):
        assert why_unavailable(impl, CPU)
        with pytest.raises(ImplUnavailableError, match=f"impl={impl.value} is not available: "):
            attention(qkv, num_heads=1, impl=impl)
    with pytest.raises(ValueError, match="impl=sdpa-flash takes no cu_seqlens on cpu"):
        attention(qkv[0], num_heads=1, cu_seqlens=torch.tensor([0, 2], dtype=torch.int32), impl="sdpa-flash")


def test_limits():
    half, single = torch.bfloat16, torch.float32
    assert refusal(Impl.TORCH, "cuda", torch.float64, 31, 10**6, True) is None
    assert refusal(Impl.SDPA_FLASH, "cpu", single, 31, 300, False) is None
    for impl in (Impl.SDPA_FLASH, Impl.SDPA_CUDNN):
        assert isinstance(refusal(impl, "cuda", single, 64, 50, False), TypeError)
        assert "8 divides" in str(refusal(impl, "cuda", half, 33, 50, False))
    assert refusal(Impl.SDPA_FLASH, "cuda", half, 64, 50, True) is None
    assert "no cu_seqlens" in str(refusal(Impl.SDPA_CUDNN, "cuda", half, 64, 50, True))
    assert "at most 256 keys" in str(refusal(Impl.TRITON, "cuda", half, 64, 257, False))
    assert "at most 128 keys" in str(refusal(Impl.TRITON, "cuda", single, 64, 129, True))
