"""add_layer_norm: the residual addition of a transformer block and the LayerNorm that follows it."""

import torch
from torch import Tensor

from ..checks import require_device, require_dims, require_dtype, require_floating, require_shape
from ..impl import Impl, choose_for_dtype

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.TRITON, Impl.TORCH, Impl.REFERENCE),
}
FUSED_DTYPES = {
    Impl.NATIVE: (torch.float32, torch.bfloat16),
    Impl.TRITON: (torch.float32, torch.bfloat16, torch.float16),
}


def add_layer_norm(
    x: Tensor,  # [..., D]
    branch: Tensor,  # [..., D]
    weight: Tensor,  # [D]
    bias: Tensor,  # [D]
    *,
    eps: float = 1e-6,
    branch_scale: Tensor | None = None,  # fp32 [B], with x [B, N, D]
    inplace: bool = False,
    impl: Impl | str = "auto",
) -> tuple[Tensor, Tensor]:  # sum and normed, both [..., D] in dtype of x
    """sum = x + branch (times branch_scale of its image), normed = LayerNorm(sum) over the last dimension.

    Statistics are in fp32 or wider, of the sum as it is returned. weight and bias may be wider than x (fp32 masters
    over bf16 activations); their gradients come in their own dtype. Differentiable in x, branch, weight and bias;
    branch_scale gets no gradient. inplace writes the sum over x, contiguous, where no gradient is asked for.
    native takes fp32 and bf16, triton fp16 too; for other dtypes "auto" means torch.
    ValueError for a shape, a device, D = 0 or inplace with a gradient; TypeError for a dtype.
    """
    _validate(x, branch, weight, bias, branch_scale)
    if inplace:
        _require_overwritable(x, branch, weight, bias)
    if branch_scale is not None:
        branch_scale = branch_scale.detach()
    return _implementation(choose_for_dtype("add_layer_norm", impl, x, SUPPORTED, FUSED_DTYPES))(
        x, branch, weight, bias, eps, branch_scale, inplace
    )


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import add_layer_norm as run
        case Impl.TRITON:
            from .triton import add_layer_norm as run
        case Impl.TORCH:
            from .stock import add_layer_norm as run
        case _:
            from .reference import add_layer_norm as run
    return run


def _validate(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, branch_scale: Tensor | None) -> None:
    op = "add_layer_norm"
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x must be [..., D] with D >= 1, not {list(x.shape)}")
    require_floating(op, x=x, branch=branch, weight=weight, bias=bias)
    require_shape(op, "branch", branch, x.shape, "as x")
    require_dtype(op, "branch", branch, x.dtype)
    require_shape(op, "weight", weight, x.shape[-1:], "[D]")
    require_shape(op, "bias", bias, x.shape[-1:], "[D]")
    require_device(op, x.device, branch=branch, weight=weight, bias=bias, branch_scale=branch_scale)
    if branch_scale is not None:
        require_dims(op, "x", x, 3, "[B, N, D] with branch_scale")
        require_shape(op, "branch_scale", branch_scale, x.shape[:1], "[B]")
        require_dtype(op, "branch_scale", branch_scale, torch.promote_types(x.dtype, torch.float32))


def _require_overwritable(x: Tensor, *others: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *others)):
        raise ValueError("add_layer_norm: inplace is for where no gradient is asked for")
    if not x.is_contiguous():
        raise ValueError("add_layer_norm: inplace needs a contiguous x")
