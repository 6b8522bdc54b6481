"""layer_norm: over the last dimension, affine."""

from torch import Tensor

from ..checks import require_device, require_floating, require_shape
from ..impl import Impl, choose
from . import native, reference, stock

SUPPORTED = {"cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE), "cuda": (Impl.TORCH, Impl.REFERENCE)}
OTHER_DTYPES = SUPPORTED | {"cpu": (Impl.TORCH, Impl.REFERENCE)}  # than those of the native kernels
RUN = {Impl.NATIVE: native.layer_norm, Impl.TORCH: stock.layer_norm, Impl.REFERENCE: reference.layer_norm}


def layer_norm(
    x: Tensor,  # [..., D]
    weight: Tensor,  # [D]
    bias: Tensor,  # [D]
    *,
    eps: float = 1e-6,
    impl: Impl | str = "auto",
) -> Tensor:  # [..., D], dtype of x
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension.

    Statistics are in fp32 or wider. weight and bias may be wider than x (fp32 masters over bf16 activations);
    their gradients come in their own dtype. Differentiable in x, weight and bias.
    native takes x in fp32 and bf16; for other dtypes "auto" means torch.
    ValueError for a shape, a device or D = 0; TypeError for a dtype that is not floating.
    """
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"layer_norm: x must be [..., D] with D >= 1, not {list(x.shape)}")
    require_shape("layer_norm", "weight", weight, x.shape[-1:], "[D]")
    require_shape("layer_norm", "bias", bias, x.shape[-1:], "[D]")
    require_floating("layer_norm", x=x, weight=weight, bias=bias)
    require_device("layer_norm", x.device, weight=weight, bias=bias)
    return RUN[_choose(impl, x)](x, weight, bias, eps)


def _choose(impl: Impl | str, x: Tensor) -> Impl:
    if x.dtype in native.DTYPES:
        return choose("layer_norm", impl, x.device, SUPPORTED)
    if impl == Impl.NATIVE:
        raise TypeError(f"layer_norm: impl=native takes torch.float32 or torch.bfloat16, not {x.dtype}")
    return choose("layer_norm", impl, x.device, OTHER_DTYPES)
