"""The specification of attention, in eager PyTorch."""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """out[b, i, h] = sum_j softmax_j(scale * q[b, i, h] . k[b, j, h]) v[b, j, h].

    q [B, N, H, d], k and v [B, M, H, d] -> [B, N, H, d]. Computed in promote_types(dtype of q, float32),
    returned in dtype of q. Source: [S] Vaswani et al. 2017.
    """
    compute = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bihd,bjhd->bhij", q.to(compute), k.to(compute)) * scale
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), v.to(compute)).to(q.dtype)
