"""layer_norm: over the last dimension, affine."""

import torch
from torch import Tensor

from ..checks import require_device, require_floating, require_shape
from ..impl import Impl, choose_for_dtype

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.TRITON, Impl.TORCH, Impl.REFERENCE),
}
FUSED_DTYPES = {
    Impl.NATIVE: (torch.float32, torch.bfloat16),
    Impl.TRITON: (torch.float32, torch.bfloat16, torch.float16),
}


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
    native takes x in fp32 and bf16, triton fp16 too; for other dtypes "auto" means torch.
    ValueError for a shape, a device or D = 0; TypeError for a dtype that is not floating.
    """
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"layer_norm: x must be [..., D] with D >= 1, not {list(x.shape)}")
    require_shape("layer_norm", "weight", weight, x.shape[-1:], "[D]")
    require_shape("layer_norm", "bias", bias, x.shape[-1:], "[D]")
    require_floating("layer_norm", x=x, weight=weight, bias=bias)
    require_device("layer_norm", x.device, weight=weight, bias=bias)
    return _implementation(choose_for_dtype("layer_norm", impl, x, SUPPORTED, FUSED_DTYPES))(x, weight, bias, eps)


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import layer_norm as run
        case Impl.TRITON:
            from .triton import layer_norm as run
        case Impl.TORCH:
            from .stock import layer_norm as run
        case _:
            from .reference import layer_norm as run
    return run
