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


def mixed_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor, max_seqlen: int | None
) -> Tensor:
    """The same for sequences of mixed lengths that lie one behind the other.

    q, k and v [T, H, d]; sequence s is the tokens cu_seqlens[s] to cu_seqlens[s + 1], which attend to each other
    and to no other; it may be empty. max_seqlen is not needed here.
    """
    lengths = cu_seqlens.diff().tolist()
    sequences = zip(*(tensor[None].split(lengths, dim=1) for tensor in (q, k, v)))
    parts = [attention(*of_sequence, scale) for of_sequence in sequences]
    return torch.cat(parts, dim=1)[0] if parts else attention(q[:, None], k[:, None], v[:, None], scale)[:, 0]
