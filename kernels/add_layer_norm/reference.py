"""The specification of add_layer_norm, in eager PyTorch."""

import torch
from torch import Tensor


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, branch_scale: Tensor | None, inplace: bool
) -> tuple[Tensor, Tensor]:
    """sum = x + branch_scale[b] * branch, normed = LayerNorm(sum) * weight + bias; both in dtype of x.

    x and branch [..., D], weight and bias [D]; with branch_scale [B], x is [B, N, D] and image b's branch is scaled
    (0 drops it: stochastic depth); without, it is added as it is. The sum is rounded to dtype of x first and what is
    normalised is the rounded one; both steps are computed in promote_types(dtype of x, float32).
    normed = (sum - mean(sum)) / sqrt(mean((sum - mean(sum))^2) + eps) * weight + bias, means over D.
    Source: [S] pre-norm block of ViT, LayerNorm of Ba, Kiros and Hinton 2016, stochastic depth of Huang et al. 2016.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    added = branch.to(compute)
    if branch_scale is not None:
        added = added * branch_scale.to(compute)[:, None, None]
    total = (x.to(compute) + added).to(x.dtype)
    centred = total.to(compute) - total.to(compute).mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    normed = (centred * scale * weight.to(compute) + bias.to(compute)).to(x.dtype)
    return x.copy_(total) if inplace else total, normed
