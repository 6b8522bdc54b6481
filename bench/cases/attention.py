"""attention from packed qkv: reads 3 D and writes D numbers a token, the backward reads 4 D and writes 3 D."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.errors import UserError
from misplace.kernels import Impl, ImplUnavailableError, attention
from misplace.kernels.attention.limits import refusal

from .. import peers
from ..gate import against_fp64
from ..measure import gate
from ..peers.attention import bmm, pass_per_length, sdpa
from ..registry import Case, Check, Thunk

# images, tokens, heads, head dim: the student and the teacher of a nano step, ViT-S at 25, 50 and 100 % kept
CPU = [
    (256, 13, 3, 64), (256, 50, 3, 64), (64, 50, 6, 64), (64, 99, 6, 64), (64, 197, 6, 64), (64, 50, 12, 32),
]  # fmt: skip
CUDA = [(1024, tokens, 384 // head_dim, head_dim) for tokens in (50, 99, 197) for head_dim in (32, 64)]
TINY = [(2, 13, 3, 32)]
# images, heads, head dim, and crops of an image: (how many, tokens of each)
MIXED = (64, 6, 64, [(2, 197), (8, 37)])
MIXED_TINY = (1, 3, 32, [(2, 13), (3, 5)])
ADAPTERS = (Impl.SDPA_FLASH, Impl.SDPA_CUDNN, Impl.SDPA_EFFICIENT, Impl.XFORMERS)
DTYPES = {"cpu": ["bfloat16", "float32"], "cuda": ["bfloat16"]}


class Inputs(NamedTuple):
    qkv: Tensor  # [B, N, 3 * D], with a gradient to find in the backward's case; mixed lengths [T, 3 * D]
    dout: Tensor  # [B, N, D]
    num_heads: int
    runs: list[tuple[int, int]] | None = None  # of mixed lengths: sequences, tokens of each
    cu_seqlens: Tensor | None = None

    @property
    def bounds(self) -> dict:
        """The arguments of attention for mixed lengths."""
        if self.runs is None:
            return {}
        return dict(cu_seqlens=self.cu_seqlens, max_seqlen=max(tokens for _, tokens in self.runs))


def _normal(leading, heads: int, head_dim: int, dtype: str, device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(*leading, parts * heads * head_dim, generator=generator).to(device, getattr(torch, dtype))
        for parts in (3, 1)
    )


def _inputs(shape, dtype: str, with_backward: bool, device: torch.device) -> Inputs:
    batch, tokens, heads, head_dim = shape
    qkv, dout = _normal((batch, tokens), heads, head_dim, dtype, device)
    return Inputs(qkv.requires_grad_(with_backward), dout, heads)


def _mixed_inputs(shape, dtype: str, with_backward: bool, device: torch.device) -> Inputs:
    images, heads, head_dim, crops = shape
    runs = [(images * count, tokens) for count, tokens in crops]
    lengths = torch.tensor([0] + [tokens for sequences, tokens in runs for _ in range(sequences)], dtype=torch.int32)
    cu_seqlens = lengths.cumsum(0, dtype=torch.int32)
    qkv, dout = _normal((int(cu_seqlens[-1]),), heads, head_dim, dtype, device)
    return Inputs(qkv.requires_grad_(with_backward), dout, heads, runs, cu_seqlens.to(device))


def _thunk(function, inputs: Inputs) -> Thunk:
    """function(qkv, num_heads=...), and with its backward where a gradient is wanted."""

    def forward():
        return (function(inputs.qkv, num_heads=inputs.num_heads),)

    def forward_and_backward():
        out = function(inputs.qkv, num_heads=inputs.num_heads)
        return out.detach(), *torch.autograd.grad(out, inputs.qkv, inputs.dout)

    return forward_and_backward if inputs.qkv.requires_grad else forward


def _function(inputs: Inputs, impl: str):
    """attention by `impl`; of mixed lengths, where it does not take them, in a call per length."""
    if inputs.runs is None:
        return partial(attention, impl=impl)
    device, head_dim = inputs.qkv.device.type, inputs.dout.shape[-1] // inputs.num_heads
    if impl != "auto" and refusal(Impl(impl), device, inputs.qkv.dtype, head_dim, None, True):
        return partial(_by_length, partial(attention, impl=impl), runs=inputs.runs)
    return partial(attention, impl=impl, **inputs.bounds)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return _thunk(_function(inputs, impl), inputs)


def _adapter(inputs: Inputs, impl: Impl) -> Thunk:
    """One of our own implementations as a peer; UserError with the reason where it does not run here."""
    thunk = _ours(inputs, impl)
    try:
        thunk()
    except (ImplUnavailableError, TypeError, ValueError) as error:
        raise UserError(f"bench: --against {impl.value}: {error}") from None
    return thunk


def _peer(inputs: Inputs, function, *, compiled: bool = False) -> Thunk:
    """A call, or with mixed lengths a call per length."""
    if inputs.runs is not None:
        function = partial(_by_length, function, runs=inputs.runs)
    return _thunk(peers.compiled(function, inputs.qkv.device) if compiled else function, inputs)


def _by_length(function, qkv: Tensor, num_heads: int, runs) -> Tensor:
    return pass_per_length(partial(function, num_heads=num_heads), qkv, runs)


PEERS = {
    "eager": partial(_peer, function=bmm),
    "eager-bmm": partial(_peer, function=bmm),
    "eager-sdpa": partial(_peer, function=sdpa),
    "compile": partial(_peer, function=bmm, compiled=True),
    "compile-bmm": partial(_peer, function=bmm, compiled=True),
    "compile-sdpa": partial(_peer, function=sdpa, compiled=True),
    **{impl.value: partial(_adapter, impl=impl) for impl in ADAPTERS},
}


def _per_length(inputs: Inputs) -> Thunk:
    """Our own choice, in a call per length."""
    return _peer(inputs, partial(attention, impl="auto"))


def _check(inputs: Inputs, impl: str) -> Check:
    """On the first two images; all of mixed lengths."""
    few = inputs if inputs.runs else inputs._replace(qkv=inputs.qkv[:2].detach())
    plain = bmm if few.runs is None else partial(_by_length, bmm, runs=few.runs)
    functions = (_function(few, impl), plain, _function(few, "reference"))
    op, eager, oracle = (partial(function, num_heads=few.num_heads) for function in functions)
    wanted = ["qkv"] if inputs.qkv.requires_grad else []
    return against_fp64(op, eager, oracle, {"qkv": few.qkv.detach()}, wanted)


def checked_thunk(shape, dtype: str, with_backward: bool, device: torch.device, impl: str) -> Thunk:
    """One implementation at one shape; RedGateError where it is wrong."""
    case = _case(shape, dtype, with_backward)
    inputs = case.make_inputs(device)
    gate(case, inputs, impl)
    return _ours(inputs, impl)


def _case(shape, dtype: str, with_backward: bool) -> Case:
    batch, tokens, heads, head_dim = shape
    name = f"B={batch} N={tokens} H={heads} d={head_dim}"
    work = batch * tokens * heads * head_dim, batch * tokens * tokens * heads * head_dim
    return _of(name, partial(_inputs, shape, dtype, with_backward), dtype, with_backward, *work)


def _mixed_case(shape, dtype: str, with_backward: bool) -> Case:
    images, heads, head_dim, crops = shape
    name = f"B={images} N={'+'.join(f'{count}x{tokens}' for count, tokens in crops)} H={heads} d={head_dim}"
    elements, pairs = (
        images * heads * head_dim * sum(count * tokens**power for count, tokens in crops) for power in (1, 2)
    )
    case = _of(name, partial(_mixed_inputs, shape, dtype, with_backward), dtype, with_backward, elements, pairs)
    return replace(case, peers=PEERS | {"per-length": _per_length})


def _of(shape: str, make_inputs, dtype: str, with_backward: bool, elements: int, pairs: int) -> Case:
    return Case(
        op="attention",
        mode="forward+backward" if with_backward else "forward",
        shape=shape,
        dtype=dtype,
        make_inputs=make_inputs,
        ours=_ours,
        peers=PEERS,
        check=_check,
        bytes_moved=elements * (11 if with_backward else 4) * getattr(torch, dtype).itemsize,
        operations=4 * pairs * (3 if with_backward else 1),
    )


def cases(*, tiny: bool) -> list[Case]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    full, made = {"cpu": CPU, "cuda": CUDA}[device], []
    for dtype in DTYPES[device]:
        for with_backward in (False, True):
            made += [_case(shape, dtype, with_backward) for shape in (TINY if tiny else full)]
            made.append(_mixed_case(MIXED_TINY if tiny else MIXED, dtype, with_backward))
    return made
