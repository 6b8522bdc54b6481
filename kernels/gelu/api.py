"""gelu: the activation of the transformer block, and the bias of the Linear before it."""

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


def gelu(
    x: Tensor,  # [...], with a bias [..., D]
    bias: Tensor | None = None,  # [D]
    *,
    impl: Impl | str = "auto",
) -> Tensor:  # as x
    """z * Phi(z) of z = x + bias, with the exact normal distribution function (erf), not the tanh approximation.

    Differentiable in x and bias; the gradient of bias comes in its own dtype, summed in fp32 in the pass that makes
    that of x, so that a Linear before it needs no bias and no pass for its gradient. native takes fp32 and bf16,
    triton fp16 too; for other dtypes "auto" means torch. ValueError for a shape or a device; TypeError for a dtype.
    """
    require_floating("gelu", x=x, bias=bias)
    require_device("gelu", x.device, bias=bias)
    if bias is not None:
        if x.dim() == 0 or x.shape[-1] == 0:
            raise ValueError(f"gelu: x must be [..., D] with D >= 1 for a bias, not {list(x.shape)}")
        require_shape("gelu", "bias", bias, x.shape[-1:], "[D]")
    return _implementation(choose_for_dtype("gelu", impl, x, SUPPORTED, FUSED_DTYPES))(x, bias)


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import gelu as run
        case Impl.TRITON:
            from .triton import gelu as run
        case Impl.TORCH:
            from .stock import gelu as run
        case _:
            from .reference import gelu as run
    return run
