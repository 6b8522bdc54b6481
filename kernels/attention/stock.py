"""attention by PyTorch's own operators, in the caller's dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """mask: bool, broadcast to [B, H, N, M]; False where a query does not see a key."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    low_precision = q.dtype in (torch.bfloat16, torch.float16)
    # On CPU the flash backward of SDPA is 5 to 10 times slower than matrix products in bf16, and not in fp32.
    if q.device.type == "cpu" and low_precision:
        # softmax reads and writes the low precision and computes in fp32
        scores = (q * scale) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        out = scores.softmax(dim=-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2)


def mixed_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Every sequence padded to max_seqlen: nothing is read back from the device, at the price of the padding.

    q, k, v [T, H, d] -> [T, H, d].
    """
    tokens = q.shape[0]
    if tokens == 0 or max_seqlen == 0:
        return (q + k + v) * 0
    place = torch.arange(max_seqlen, device=q.device)
    first, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff()
    exists = place < lengths[:, None]  # [S, max_seqlen]
    token = (first[:, None] + place).clamp(max=tokens - 1)
    # zeros, not what happens to lie there: a probability of 0 times a neighbour's NaN would be NaN
    q, k, v = (tensor[token].masked_fill(~exists[..., None, None], 0) for tensor in (q, k, v))
    # the first key is there for all, so that a row of an empty sequence is no 0 / 0
    mask = (exists | (place == 0))[:, None, None, :]
    out = attention(q, k, v, scale, mask)
    each = torch.arange(tokens, device=q.device)
    sequence = torch.searchsorted(cu_seqlens[1:].long(), each, right=True)
    return out[sequence, each - first[sequence]]
