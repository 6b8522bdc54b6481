"""The specification of token_bce, in eager PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_bce(
    tokens: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    offset: int,
    eps: float,
    token_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """x = tokens[:, offset:];  z = LayerNorm(x; norm_weight, norm_bias, eps) . weight + bias;
    bce = max(z, 0) - z * target + ln(1 + exp(-|z|))
    loss = mean(bce), or sum(w * bce) / sum(w) with token_weight w

    tokens [B, offset + K, D], norm_weight and norm_bias [D], weight [1, D], bias [1], target and w [B, K]
    -> (loss scalar in nats, logits z [B, K] without gradient). Computed and returned in
    promote_types(dtype of tokens, float32).
    At a share theta of true targets, knowing nothing costs the entropy of theta: 0.5004 nats at 0.2.
    Source: [S] DILEMMA (arXiv 2204.04788): a linear head on the normalised patch tokens, mean over tokens
    and images.
    """
    compute = torch.promote_types(tokens.dtype, torch.float32)
    tokens, norm_weight, norm_bias, weight, bias, target = (
        tensor.to(compute) for tensor in (tokens[:, offset:], norm_weight, norm_bias, weight, bias, target)
    )
    normalised = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps)
    logits = (normalised @ weight.T + bias).squeeze(-1)
    if token_weight is None:
        loss = F.binary_cross_entropy_with_logits(logits, target.detach())
    else:
        token_weight = token_weight.detach().to(compute)
        each = F.binary_cross_entropy_with_logits(logits, target.detach(), reduction="none")
        loss = (each * token_weight).sum() / token_weight.sum()
    return loss, logits.detach()
