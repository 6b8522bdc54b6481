"""attention from packed qkv: reads 3 D and writes D numbers a token, the backward reads 4 D and writes 3 D."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import attention

from .. import peers
from ..gate import against_fp64
from ..peers.attention import bmm, sdpa
from ..registry import Case, Check, Thunk

# images, tokens, heads, head dim: the student and the teacher of a nano step, ViT-S at 25, 50 and 100 % kept
FULL = [(256, 13, 3, 64), (256, 50, 3, 64), (64, 50, 6, 64), (64, 99, 6, 64), (64, 197, 6, 64), (64, 50, 12, 32)]
TINY = [(2, 13, 3, 32)]
DTYPES = ["bfloat16", "float32"]


class Inputs(NamedTuple):
    qkv: Tensor  # [B, N, 3 * D], with a gradient to find in the backward's case
    dout: Tensor  # [B, N, D]
    num_heads: int


def _inputs(shape, dtype: str, with_backward: bool, device: torch.device) -> Inputs:
    batch, tokens, heads, head_dim = shape
    generator = torch.Generator().manual_seed(0)
    qkv, dout = (
        torch.randn(batch, tokens, parts * heads * head_dim, generator=generator).to(device, getattr(torch, dtype))
        for parts in (3, 1)
    )
    return Inputs(qkv.requires_grad_(with_backward), dout, heads)


def _thunk(function, inputs: Inputs) -> Thunk:
    def forward():
        return (function(inputs.qkv, num_heads=inputs.num_heads),)

    def forward_and_backward():
        out = function(inputs.qkv, num_heads=inputs.num_heads)
        return out.detach(), *torch.autograd.grad(out, inputs.qkv, inputs.dout)

    return forward_and_backward if inputs.qkv.requires_grad else forward


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return _thunk(partial(attention, impl=impl), inputs)


def _compiled(inputs: Inputs) -> Thunk:
    return _thunk(peers.compiled(bmm, inputs.qkv.device), inputs)


def _check(inputs: Inputs, impl: str) -> Check:
    functions = (partial(attention, impl=impl), bmm, partial(attention, impl="reference"))
    op, eager, oracle = (partial(function, num_heads=inputs.num_heads) for function in functions)
    wanted = ["qkv"] if inputs.qkv.requires_grad else []
    return against_fp64(op, eager, oracle, {"qkv": inputs.qkv[:2].detach()}, wanted)


def _case(shape, dtype: str, with_backward: bool) -> Case:
    batch, tokens, heads, head_dim = shape
    elements = batch * tokens * heads * head_dim
    return Case(
        op="attention",
        mode="forward+backward" if with_backward else "forward",
        shape=f"B={batch} N={tokens} H={heads} d={head_dim}",
        dtype=dtype,
        make_inputs=partial(_inputs, shape, dtype, with_backward),
        ours=_ours,
        peers={
            "eager": partial(_thunk, bmm),
            "eager-bmm": partial(_thunk, bmm),
            "eager-sdpa": partial(_thunk, sdpa),
            "compile": _compiled,
        },
        check=_check,
        bytes_moved=elements * (11 if with_backward else 4) * getattr(torch, dtype).itemsize,
        operations=4 * elements * tokens * (3 if with_backward else 1),
    )


def cases(*, tiny: bool) -> list[Case]:
    return [
        _case(shape, dtype, with_backward)
        for shape in (TINY if tiny else FULL)
        for dtype in DTYPES
        for with_backward in (False, True)
    ]
