"""add_layer_norm by PyTorch's own operators: an addition in dtype of x, then LayerNorm with fp32 statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, branch_scale: Tensor | None, inplace: bool
) -> tuple[Tensor, Tensor]:
    if branch_scale is not None:
        branch = branch * branch_scale.to(x.dtype)[:, None, None]
    total = x.add_(branch) if inplace else x + branch
    # PyTorch's CPU backward sums the weight gradients in the dtype of its input, as autocast knows
    on_cpu = x.device.type == "cpu"
    wide = total.to(torch.promote_types(x.dtype, torch.float32)) if on_cpu else total
    normed = F.layer_norm(wide, x.shape[-1:], weight.to(wide.dtype), bias.to(wide.dtype), eps)
    return total, normed.to(x.dtype)
