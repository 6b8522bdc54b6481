"""token_bce: final LayerNorm -> Linear(D, 1) -> binary cross entropy, over the patch tokens."""

import torch
from torch import Tensor

from ..checks import require_device, require_dims, require_floating, require_shape
from ..impl import Impl, choose

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.TRITON, Impl.NATIVE, Impl.TORCH, Impl.REFERENCE),
}


def token_bce(
    tokens: Tensor,  # [B, offset + K, D], the trunk's output before its final norm
    norm_weight: Tensor,  # [D]
    norm_bias: Tensor,  # [D]
    weight: Tensor,  # [1, D]
    bias: Tensor,  # [1]
    target: Tensor,  # [B, K], bool, or floating in [0, 1]
    *,
    offset: int = 1,
    eps: float = 1e-6,
    token_weight: Tensor | None = None,  # [B, K], >= 0
    impl: Impl | str = "auto",
) -> tuple[Tensor, Tensor]:  # loss scalar in nats and logits [B, K], both fp32 (fp64 for fp64 inputs)
    """Mean binary cross entropy of one logit per patch token; the first `offset` tokens of an image are
    left out.

    With token_weight the mean is weighted, sum(w * bce) / sum(w); a sum of 0 gives nan. Differentiable in
    tokens, norm_weight, norm_bias, weight and bias; the logits carry no gradient, nor do target and
    token_weight get one. ValueError for a shape, a device or no patch tokens; TypeError for a dtype: all take
    bf16 and fp32 tokens; fp16 all but native on the CPU; fp64 all but triton, and native on a GPU.
    """
    _validate(tokens, norm_weight, norm_bias, weight, bias, target, offset, token_weight)
    run = _implementation(choose("token_bce", impl, tokens.device, SUPPORTED))
    return run(tokens, norm_weight, norm_bias, weight, bias, target, offset, eps, token_weight)


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import token_bce as run
        case Impl.TRITON:
            from .triton import token_bce as run
        case Impl.TORCH:
            from .stock import token_bce as run
        case _:
            from .reference import token_bce as run
    return run


def _validate(
    tokens: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    offset: int,
    token_weight: Tensor | None,
) -> None:
    op = "token_bce"
    require_dims(op, "tokens", tokens, 3, "[B, offset + K, D]")
    batch, length, width = tokens.shape
    if offset < 0 or batch == 0 or length <= offset or width == 0:
        raise ValueError(f"token_bce: no patch tokens in tokens {list(tokens.shape)} with offset {offset}")
    require_shape(op, "norm_weight", norm_weight, (width,), "[D]")
    require_shape(op, "norm_bias", norm_bias, (width,), "[D]")
    require_shape(op, "weight", weight, (1, width), "[1, D]")
    require_shape(op, "bias", bias, (1,), "[1]")
    require_shape(op, "target", target, (batch, length - offset), "[B, K]")
    require_floating(op, tokens=tokens, norm_weight=norm_weight, norm_bias=norm_bias, weight=weight, bias=bias)
    if target.dtype != torch.bool and not target.is_floating_point():
        raise TypeError(f"token_bce: target must be bool or floating point, not {target.dtype}")
    if token_weight is not None:
        require_shape(op, "token_weight", token_weight, target.shape, "[B, K]")
        require_floating(op, token_weight=token_weight)
    require_device(op, tokens.device, norm_weight=norm_weight, norm_bias=norm_bias, weight=weight, bias=bias)
    require_device(op, tokens.device, target=target, token_weight=token_weight)
