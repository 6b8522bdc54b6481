"""restore: least traffic is a read of the tokens and a write of the full sequence, and the same the other way back."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import restore, token_plan

from .. import peers
from ..gate import against_fp64
from ..peers.restore import eager_restore, restore_indices
from ..registry import Case, Check, Thunk

DROP_RATE = 0.75
# images, patches, width of the decoder
FULL = [(64, 196, 512), (256, 196, 512), (256, 49, 128)]
TINY = [(3, 16, 32)]
DTYPES = ["bfloat16", "float32"]


class Inputs(NamedTuple):
    tokens: Tensor  # [B, 1 + K, D]
    src: Tensor  # int32 [B, K]
    mask_token: Tensor  # fp32 [D]; it and the tokens have gradients to find in the backward's cases
    position: Tensor  # fp32 [1 + L, D], fixed
    gradient: Tensor  # [B, 1 + L, D]


def _inputs(shape, dtype: str, with_backward: bool, device: torch.device) -> Inputs:
    batch, num_patches, width = shape
    generator = torch.Generator().manual_seed(0)
    settings = dict(drop_rate=DROP_RATE, wrong_rate=0.0, seed=1, epoch=0, view=0)
    src = token_plan(torch.arange(batch, device=device), num_patches=num_patches, **settings).src

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device)

    tokens, gradient = (
        normal(batch, 1 + count, width).to(getattr(torch, dtype)) for count in (src.shape[1], num_patches)
    )
    mask_token, position = normal(width), normal(1 + num_patches, width)
    return Inputs(
        tokens.requires_grad_(with_backward), src, mask_token.requires_grad_(with_backward), position, gradient
    )


def _thunk(function, tokens: Tensor, index: Tensor, mask_token: Tensor, position: Tensor, gradient: Tensor) -> Thunk:
    def forward_and_backward():
        out = function(tokens, index, mask_token, position)
        return out.detach(), *torch.autograd.grad(out, (tokens, mask_token), gradient)

    return forward_and_backward if tokens.requires_grad else lambda: (function(tokens, index, mask_token, position),)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return _thunk(partial(restore, impl=impl), *inputs)


def _peer(inputs: Inputs, *, compiled: bool) -> Thunk:
    """Its indices, and its mask token and positions in dtype of the tokens, are made once."""
    function = peers.compiled(eager_restore, inputs.tokens.device) if compiled else eager_restore
    mask_token = inputs.mask_token.detach().to(inputs.tokens.dtype).requires_grad_(inputs.tokens.requires_grad)
    indices = restore_indices(inputs.src, len(inputs.position) - 1)
    return _thunk(
        function, inputs.tokens, indices, mask_token, inputs.position.to(inputs.tokens.dtype), inputs.gradient
    )


def _check(inputs: Inputs, impl: str) -> Check:
    few = 8  # images
    tensors = {
        "tokens": inputs.tokens.detach()[:few],
        "src": inputs.src[:few],
        "mask_token": inputs.mask_token.detach(),
        "position": inputs.position,
    }

    def eager(tokens: Tensor, src: Tensor, mask_token: Tensor, position: Tensor) -> Tensor:
        indices = restore_indices(src, len(position) - 1)
        return eager_restore(tokens, indices, mask_token.to(tokens.dtype), position.to(tokens.dtype))

    op, oracle = (partial(restore, impl=each) for each in (impl, "reference"))
    return against_fp64(op, eager, oracle, tensors, ["tokens", "mask_token"] if inputs.tokens.requires_grad else [])


def _case(shape, dtype: str, with_backward: bool) -> Case:
    batch, num_patches, width = shape
    rows = batch * (2 + num_patches + int(num_patches * (1 - DROP_RATE) + 1e-6))
    return Case(
        op="restore",
        mode="forward+backward" if with_backward else "forward",
        shape=f"B={batch} L={num_patches} D={width} drop={DROP_RATE}",
        dtype=dtype,
        make_inputs=partial(_inputs, shape, dtype, with_backward),
        ours=_ours,
        peers={"eager": partial(_peer, compiled=False), "compile": partial(_peer, compiled=True)},
        check=_check,
        bytes_moved=rows * width * getattr(torch, dtype).itemsize * (2 if with_backward else 1),
    )


def cases(*, tiny: bool) -> list[Case]:
    return [
        _case(shape, dtype, with_backward)
        for shape in (TINY if tiny else FULL)
        for dtype in DTYPES
        for with_backward in (False, True)
    ]
