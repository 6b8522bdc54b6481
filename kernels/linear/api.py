"""linear: x W^T + b, with low-precision copies of master weights where they exist."""

from torch import Tensor

from ..checks import require_device, require_dims, require_dtype, require_floating, require_shape
from ..impl import Impl, choose
from . import reference, stock

SUPPORTED = {"cpu": (Impl.TORCH, Impl.REFERENCE), "cuda": (Impl.TORCH, Impl.REFERENCE)}
RUN = {Impl.TORCH: stock.linear, Impl.REFERENCE: reference.linear}


def linear(
    x: Tensor,  # [..., I]
    weight: Tensor,  # [O, I], the master
    bias: Tensor | None,  # [O], the master
    *,
    weight_copy: Tensor | None = None,  # [O, I], dtype of x
    bias_copy: Tensor | None = None,  # [O], dtype of x
    impl: Impl | str = "auto",
) -> Tensor:  # [..., O], dtype of x
    """x @ weight.T + bias.

    With copies, the copies give the value and the gradient of x, and the masters receive the gradients of
    weight and bias in their own dtype (fp32); nobody differentiates a copy. Without copies the masters are
    cast to x's dtype. Differentiable once in x, weight and bias.
    ValueError for a shape, a device, or one copy without the other; TypeError for a dtype that is not
    floating or a copy that is not in x's dtype.
    """
    _validate(x, weight, bias, weight_copy, bias_copy)
    run = RUN[choose("linear", impl, x.device, SUPPORTED)]
    return run(x, weight, bias, weight_copy, bias_copy)


def _validate(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_copy: Tensor | None, bias_copy: Tensor | None
) -> None:
    op = "linear"
    require_dims(op, "weight", weight, 2, "[O, I]")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x must be [..., I] with I = {weight.shape[1]}, not {list(x.shape)}")
    require_floating(op, x=x, weight=weight, bias=bias)
    require_device(op, x.device, weight=weight, bias=bias, weight_copy=weight_copy, bias_copy=bias_copy)
    if bias is not None:
        require_shape(op, "bias", bias, weight.shape[:1], "[O]")
    if bias_copy is not None and (bias is None or weight_copy is None):
        raise ValueError("linear: bias_copy needs both bias and weight_copy")
    if weight_copy is None:
        return
    if bias is not None and bias_copy is None:
        raise ValueError("linear: weight_copy is given, so bias needs its bias_copy")
    require_shape(op, "weight_copy", weight_copy, weight.shape, "[O, I]")
    require_dtype(op, "weight_copy", weight_copy, x.dtype)
    if bias_copy is not None:
        require_shape(op, "bias_copy", bias_copy, weight.shape[:1], "[O]")
        require_dtype(op, "bias_copy", bias_copy, x.dtype)
