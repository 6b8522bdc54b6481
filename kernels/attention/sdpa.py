"""attention by one named backend of torch's scaled_dot_product_attention; torch's error where it cannot."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..impl import Impl

BACKENDS = {
    Impl.SDPA_FLASH: SDPBackend.FLASH_ATTENTION,
    Impl.SDPA_CUDNN: SDPBackend.CUDNN_ATTENTION,
    Impl.SDPA_EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
}


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, impl: Impl) -> Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    with sdpa_kernel(BACKENDS[impl]):
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2)


def mixed_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """The flash kernel for mixed lengths, on a GPU: q, k, v [T, H, d] -> [T, H, d]."""
    from torch.nn.attention.varlen import varlen_attn

    # its own scale is 1 / sqrt(d), and not every version takes another
    own = q.shape[-1] ** -0.5
    q = q if scale == own else q * (scale / own)
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
