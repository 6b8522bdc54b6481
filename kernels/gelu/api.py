"""gelu: the activation of the transformer block."""

from torch import Tensor

from ..checks import require_floating
from ..impl import Impl, choose
from . import native, reference, stock

SUPPORTED = {"cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE), "cuda": (Impl.TORCH, Impl.REFERENCE)}
OTHER_DTYPES = SUPPORTED | {"cpu": (Impl.TORCH, Impl.REFERENCE)}  # than those of the native kernels
RUN = {Impl.NATIVE: native.gelu, Impl.TORCH: stock.gelu, Impl.REFERENCE: reference.gelu}


def gelu(
    x: Tensor,  # [...]
    *,
    impl: Impl | str = "auto",
) -> Tensor:  # [...], dtype of x
    """x * Phi(x) with the exact normal distribution function (erf), not the tanh approximation.

    Differentiable in x. native takes fp32 and bf16; for other dtypes "auto" means torch.
    TypeError unless x is floating point.
    """
    require_floating("gelu", x=x)
    return RUN[_choose(impl, x)](x)


def _choose(impl: Impl | str, x: Tensor) -> Impl:
    if x.dtype in native.DTYPES:
        return choose("gelu", impl, x.device, SUPPORTED)
    if impl == Impl.NATIVE:
        raise TypeError(f"gelu: impl=native takes torch.float32 or torch.bfloat16, not {x.dtype}")
    return choose("gelu", impl, x.device, OTHER_DTYPES)
