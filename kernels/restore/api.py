"""restore: the decoder's input of MAE, every token back at its patch's place."""

import torch
from torch import Tensor

from ..checks import require_device, require_dims, require_dtype, require_floating, require_shape
from ..impl import Impl, choose_for_dtype

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.TRITON, Impl.TORCH, Impl.REFERENCE),
}
FUSED_DTYPES = {
    Impl.NATIVE: (torch.float32, torch.bfloat16),
    Impl.TRITON: (torch.float32, torch.bfloat16, torch.float16),
}
OP = "restore"


def restore(
    tokens: Tensor,  # [B, 1 + K, D], the class token first
    src: Tensor,  # int32 [B, K], distinct in a row, in [0, L); K from 0 to L
    mask_token: Tensor,  # [D]
    position: Tensor,  # [1 + L, D]; row 0 is the class token's, row 1 + i that of patch i
    *,
    impl: Impl | str = "auto",
) -> Tensor:  # [B, 1 + L, D], dtype of tokens
    """Row 0 of an image: tokens[0] + position[0].
    Row 1 + src[k]: tokens[1 + k] + position[1 + src[k]]. Every other row 1 + l: mask_token + position[1 + l].

    Added in fp32 (fp64 for fp64 tokens) and rounded once; mask_token and position are of any floating dtype, meant as
    fp32 masters. Differentiable in tokens, mask_token and position, the gradients of the latter two summed in fp32 in
    an order that is always the same. Where a row of src names a patch twice, its row is one of the two tokens and the
    gradients are undefined.
    ValueError for a shape or a device; TypeError for a dtype. impl="reference", outside torch.compile, and "native"
    raise IndexError for src out of range; the others trust it. native takes fp32 and bf16 tokens, triton fp16 too; for
    other dtypes "auto" means torch.
    """
    require_dims(OP, "tokens", tokens, 3, "[B, 1 + K, D]")
    require_dims(OP, "src", src, 2, "[B, K]")
    require_dims(OP, "position", position, 2, "[1 + L, D]")
    (batch, kept), width = src.shape, tokens.shape[2]
    require_shape(OP, "tokens", tokens, (batch, 1 + kept, width), "[B, 1 + K, D]")
    require_shape(OP, "mask_token", mask_token, (width,), "[D]")
    require_shape(OP, "position", position, (position.shape[0], width), "[1 + L, D]")
    if width == 0 or kept > position.shape[0] - 1:
        raise ValueError(f"restore: {kept} tokens of width {width} have no place in position {list(position.shape)}")
    require_dtype(OP, "src", src, torch.int32)
    require_floating(OP, tokens=tokens, mask_token=mask_token, position=position)
    require_device(OP, tokens.device, src=src, mask_token=mask_token, position=position)
    run = _implementation(choose_for_dtype(OP, impl, tokens, SUPPORTED, FUSED_DTYPES))
    return run(tokens, src, mask_token, position)


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import restore as run
        case Impl.TRITON:
            from .triton import restore as run
        case Impl.TORCH:
            from .stock import restore as run
        case _:
            from .reference import restore as run
    return run
