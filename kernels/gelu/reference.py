"""The specification of gelu, in eager PyTorch."""

import math

import torch
from torch import Tensor


def gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """y = z * (1 + erf(z / sqrt(2))) / 2 with z = x + bias, computed in promote_types(dtype of x, float32), returned
    in dtype of x.

    x of any shape; with bias [D], x is [..., D]. The sum is not rounded before the activation.
    Source: [S] Hendrycks and Gimpel 2016, the exact form, as nn.GELU() in every ViT here.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(compute) if bias is None else x.to(compute) + bias.to(compute)
    return (wide * (1 + torch.erf(wide * math.sqrt(0.5))) / 2).to(x.dtype)
