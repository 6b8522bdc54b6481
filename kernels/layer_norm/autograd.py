"""What the registered ops of layer_norm share: their schemas, fake kernels and the autograd around them.

Saved for the backward: x, and mean and 1 / sqrt(variance + eps) of every row.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def define(library: torch.library.Library, name: str, last: str = "") -> None:
    """Declares misplace::name and name_backward; last: what an implementation asks for besides."""
    for schema in (
        f"{name}(Tensor x, Tensor weight, Tensor bias, float eps, bool save{last}) "
        "-> (Tensor y, Tensor mean, Tensor rstd)",
        f"{name}_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd{last}) "
        "-> (Tensor dx, Tensor daffine)",
    ):
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"misplace::{name}", empty_results, lib=library)
    torch.library.register_fake(f"misplace::{name}_backward", empty_gradients, lib=library)


def empty_results(x, weight, bias, eps, save, *_):
    """y, mean and rstd, not yet written; statistics without elements unless they are saved."""
    mean = x.new_empty((x.numel() // x.shape[-1] if save else 0,), dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


def empty_gradients(dy, x, weight, mean, rstd, *_):
    """dx and the gradients of weight and bias, fp32 [2, D]; not yet written."""
    return x.new_empty(x.shape), x.new_empty((2, *weight.shape), dtype=torch.float32)


def differentiable(
    ops: tuple,  # forward, backward
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *last,
) -> Tensor:
    """y; where nothing requires a gradient, nothing is saved."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, weight, bias)):
        return _LayerNorm.apply(*ops, x, weight, bias, eps, last)
    return ops[0](x, weight, bias, eps, False, *last)[0]


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx, run, backward, x, weight, bias, eps, last):
        y, mean, rstd = run(x, weight, bias, eps, True, *last)
        ctx.backward_op, ctx.last, ctx.dtypes = backward, last, (weight.dtype, bias.dtype)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dx, daffine = ctx.backward_op(dy, *ctx.saved_tensors, *ctx.last)
        dweight, dbias = (gradient.to(dtype) for gradient, dtype in zip(daffine.unbind(), ctx.dtypes))
        return None, None, dx, dweight, dbias, None, None
