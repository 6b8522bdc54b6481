"""attention: softmax attention over short sequences, all tokens to all tokens."""

from torch import Tensor

from ..checks import require_device, require_dims, require_dtype, require_floating, require_shape
from ..impl import Impl, choose
from . import native, reference, stock

SUPPORTED = {"cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE), "cuda": (Impl.TORCH, Impl.REFERENCE)}
OTHER_DTYPES = SUPPORTED | {"cpu": (Impl.TORCH, Impl.REFERENCE)}  # than those of the native kernels
RUN = {Impl.NATIVE: native.attention, Impl.TORCH: stock.attention, Impl.REFERENCE: reference.attention}


def attention(
    qkv: Tensor,  # [B, N, 3 * D], or q [B, N, H, D / H] when k and v are given
    k: Tensor | None = None,  # [B, M, H, D / H]
    v: Tensor | None = None,  # [B, M, H, D / H]
    *,
    num_heads: int | None = None,
    scale: float | None = None,
    impl: Impl | str = "auto",
) -> Tensor:  # [B, N, D] from packed qkv, [B, N, H, D / H] from q, k, v; dtype of the input
    """softmax(q k^T * scale) v for every image and head, without a mask.

    Packed: the last dimension is q, k, v, each as num_heads heads, as timm's qkv projection gives it.
    Separate: q, k and v have the heads as a dimension of their own, and keys may be of another number than
    queries. scale: 1 / sqrt(head dim) when None. Differentiable in every input.
    native takes any number of tokens and any head dim, in fp32 and bf16; for other dtypes "auto" means torch.
    ValueError for a shape, a device, no keys, or a num_heads that does not divide D or contradicts q;
    TypeError for dtypes.
    """
    if (k is None) != (v is None):
        raise ValueError("attention: give k and v together, or neither with packed qkv")
    packed = k is None
    q, k, v = _split(qkv, num_heads) if packed else _separate(qkv, k, v, num_heads)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = _choose(impl, q)
    if packed and chosen is Impl.NATIVE:
        return native.attention_packed(qkv, num_heads, scale)
    out = RUN[chosen](q, k, v, scale)
    return out.flatten(2) if packed else out


def _choose(impl: Impl | str, q: Tensor) -> Impl:
    if q.dtype in native.DTYPES:
        return choose("attention", impl, q.device, SUPPORTED)
    if impl == Impl.NATIVE:
        raise TypeError(f"attention: impl=native takes torch.float32 or torch.bfloat16, not {q.dtype}")
    return choose("attention", impl, q.device, OTHER_DTYPES)


def _split(qkv: Tensor, num_heads: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k and v, each [B, N, H, D / H]."""
    require_dims("attention", "qkv", qkv, 3, "[B, N, 3 * D]")
    require_floating("attention", qkv=qkv)
    if num_heads is None or num_heads < 1:
        raise ValueError(f"attention: packed qkv needs num_heads >= 1, not {num_heads}")
    width = qkv.shape[-1]
    if width == 0 or width % (3 * num_heads):
        raise ValueError(f"attention: qkv has width {width}, not 3 * {num_heads} heads * head dim")
    if qkv.shape[1] == 0:
        raise ValueError(f"attention: no tokens to attend to, qkv is {list(qkv.shape)}")
    return qkv.unflatten(-1, (3, num_heads, width // (3 * num_heads))).unbind(2)


def _separate(q: Tensor, k: Tensor, v: Tensor, num_heads: int | None) -> tuple[Tensor, Tensor, Tensor]:
    require_dims("attention", "q", q, 4, "[B, N, H, D / H]")
    require_dims("attention", "k", k, 4, "[B, M, H, D / H]")
    require_floating("attention", q=q)
    batch, _, heads, head_dim = q.shape
    keys = k.shape[1]
    if keys == 0 or head_dim == 0 or heads == 0:
        raise ValueError(f"attention: nothing to attend to, q is {list(q.shape)} and k is {list(k.shape)}")
    if num_heads not in (None, heads):
        raise ValueError(f"attention: num_heads is {num_heads}, q has {heads} heads")
    for name, tensor in (("k", k), ("v", v)):
        require_shape("attention", name, tensor, (batch, keys, heads, head_dim), "[B, M, H, D / H]")
        require_dtype("attention", name, tensor, q.dtype)
    require_device("attention", q.device, k=k, v=v)
    return q, k, v
