"""The specification of layer_norm, in eager PyTorch."""

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias.

    x [..., D], weight [D], bias [D]; means over D, the variance biased (divided by D). Computed in
    promote_types(dtype of x, float32), returned in dtype of x.
    Source: [S] Ba, Kiros and Hinton 2016; eps 1e-6 as in ViT.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    centred = x.to(compute) - x.to(compute).mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (centred * scale * weight.to(compute) + bias.to(compute)).to(x.dtype)
