"""The specification of gelu, in eager PyTorch."""

import math

import torch
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """y = x * (1 + erf(x / sqrt(2))) / 2, computed in promote_types(dtype of x, float32), returned in
    dtype of x.

    Any shape. Source: [S] Hendrycks and Gimpel 2016, the exact form, as nn.GELU() in every ViT here.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (1 + torch.erf(wide * math.sqrt(0.5))) / 2).to(x.dtype)
