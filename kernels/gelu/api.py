"""gelu: the activation of the transformer block."""

from torch import Tensor

from ..checks import require_floating
from ..impl import Impl, choose
from . import reference, stock

SUPPORTED = {"cpu": (Impl.TORCH, Impl.REFERENCE), "cuda": (Impl.TORCH, Impl.REFERENCE)}
RUN = {Impl.TORCH: stock.gelu, Impl.REFERENCE: reference.gelu}


def gelu(
    x: Tensor,  # [...]
    *,
    impl: Impl | str = "auto",
) -> Tensor:  # [...], dtype of x
    """x * Phi(x) with the exact normal distribution function (erf), not the tanh approximation.

    Differentiable in x. TypeError unless x is floating point.
    """
    require_floating("gelu", x=x)
    return RUN[choose("gelu", impl, x.device, SUPPORTED)](x)
