"""linear: x W^T + b, with low-precision copies of master weights where they exist."""

import torch
from torch import Tensor

from ..checks import require_device, require_dims, require_dtype, require_floating, require_shape
from ..impl import Impl, choose_for_dtype
from . import onednn, reference, stock

SUPPORTED = {"cpu": (Impl.ONEDNN, Impl.TORCH, Impl.REFERENCE), "cuda": (Impl.TORCH, Impl.REFERENCE)}
RUN = {Impl.ONEDNN: onednn.linear, Impl.TORCH: stock.linear, Impl.REFERENCE: reference.linear}


def linear(
    x: Tensor,  # [..., I]
    weight: Tensor,  # [O, I], the master
    bias: Tensor | None,  # [O], the master
    *,
    weight_copy: Tensor | None = None,  # [O, I], dtype of x
    bias_copy: Tensor | None = None,  # [O], dtype of x
    packed: Tensor | None = None,  # pack_weight of what would be multiplied
    impl: Impl | str = "auto",
) -> Tensor:  # [..., O], dtype of x
    """x @ weight.T + bias.

    With copies, the copies give the value and the gradient of x, and the masters receive the gradients of
    weight and bias in their own dtype (fp32); nobody differentiates a copy. Without copies the masters are
    cast to x's dtype. Differentiable once in x, weight and bias.
    packed is multiplied in place of the weight, where no gradient is asked for; only onednn reads it.
    onednn takes fp32 and bf16; for other dtypes "auto" means torch.
    ValueError for a shape, a device, one copy without the other, or packed with a gradient; TypeError for a
    dtype that is not floating or a copy that is not in x's dtype.
    """
    _validate(x, weight, bias, weight_copy, bias_copy)
    if packed is not None:
        _validate_packed(x, weight, bias, packed)
        if _choose(impl, x) is Impl.ONEDNN:
            bias = bias if bias_copy is None else bias_copy
            return onednn.product(x, packed, None if bias is None else bias.to(x.dtype))
    return RUN[_choose(impl, x)](x, weight, bias, weight_copy, bias_copy)


def _choose(impl: Impl | str, x: Tensor) -> Impl:
    return choose_for_dtype("linear", impl, x, SUPPORTED, {Impl.ONEDNN: onednn.DTYPES})


def pack_weight(weight: Tensor, rows: int, *, impl: Impl | str = "auto") -> Tensor | None:
    """weight [O, I] as `linear` takes it, for inputs of about `rows` rows; None where `impl` packs nothing.

    A snapshot: what is later written to `weight` does not reach it.
    """
    require_dims("linear", "weight", weight, 2, "[O, I]")
    return onednn.pack(weight, rows) if _choose(impl, weight) is Impl.ONEDNN else None


def _validate_packed(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor) -> None:
    require_shape("linear", "packed", packed, weight.shape, "[O, I]")
    require_dtype("linear", "packed", packed, x.dtype)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        raise ValueError("linear: packed is for where no gradient is asked for")


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
