"""What the registered ops of add_layer_norm share: their schemas, fake kernels and the autograd around them.

Saved for the backward: the rounded sum, which is kept anyway, and two fp32 numbers a row. Without branch_scale the
gradients of x and branch are one tensor, written once.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

FORWARD = "Tensor branch, Tensor weight, Tensor bias, Tensor? branch_scale, float eps"
BACKWARD = "Tensor? dsum, Tensor dnormed, Tensor sum, Tensor weight, Tensor mean, Tensor rstd, Tensor? branch_scale"


def define(library: torch.library.Library, name: str, last: str = "") -> None:
    """Declares misplace::name, name_ (in place) and name_backward; last: what an implementation asks for besides."""
    tags = (torch.Tag.pt2_compliant_tag,)
    library.define(
        f"{name}(Tensor x, {FORWARD}, bool save{last}) -> (Tensor sum, Tensor normed, Tensor mean, Tensor rstd)",
        tags=tags,
    )
    library.define(f"{name}_(Tensor(a!) x, {FORWARD}{last}) -> Tensor normed", tags=tags)
    library.define(f"{name}_backward({BACKWARD}{last}) -> (Tensor dx, Tensor dbranch, Tensor daffine)", tags=tags)
    torch.library.register_fake(f"misplace::{name}", empty_results, lib=library)
    torch.library.register_fake(f"misplace::{name}_", lambda x, *_: x.new_empty(x.shape), lib=library)
    torch.library.register_fake(f"misplace::{name}_backward", empty_gradients, lib=library)


def empty_results(x, branch, weight, bias, branch_scale, eps, save, *_):
    """sum, normed, mean and rstd, not yet written; statistics without elements unless they are saved."""
    mean = x.new_empty((x.numel() // x.shape[-1] if save else 0,), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, torch.empty_like(mean)


def empty_gradients(dsum, dnormed, total, weight, mean, rstd, branch_scale, *_):
    """dx, dbranch (without elements where it is dx) and those of weight and bias, fp32 [2, D]; not yet written."""
    dbranch = total.new_empty((0,) if branch_scale is None else total.shape)
    return total.new_empty(total.shape), dbranch, total.new_empty((2, *weight.shape), dtype=torch.float32)


def differentiable(
    ops: tuple,  # forward, in place, backward
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    branch_scale: Tensor | None,
    inplace: bool,
    *last,
) -> tuple[Tensor, Tensor]:
    """sum and normed; where nothing requires a gradient, nothing is saved."""
    run, run_, backward = ops
    if inplace:
        return x, run_(x, branch, weight, bias, branch_scale, eps, *last)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, branch, weight, bias)):
        return _AddLayerNorm.apply(run, backward, x, branch, weight, bias, branch_scale, eps, last)
    return run(x, branch, weight, bias, branch_scale, eps, False, *last)[:2]


class _AddLayerNorm(Function):
    @staticmethod
    def forward(ctx, run, backward, x, branch, weight, bias, branch_scale, eps, last):
        total, normed, mean, rstd = run(x, branch, weight, bias, branch_scale, eps, True, *last)
        ctx.backward_op, ctx.last, ctx.dtypes = backward, last, (weight.dtype, bias.dtype)
        ctx.save_for_backward(total, weight, mean, rstd, branch_scale)
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx, dsum, dnormed):
        branch_scale = ctx.saved_tensors[-1]
        if dnormed is None:
            scaled = dsum if branch_scale is None else (dsum * branch_scale[:, None, None]).to(dsum.dtype)
            return None, None, dsum, scaled, None, None, None, None, None
        dx, dbranch, daffine = ctx.backward_op(dsum, dnormed, *ctx.saved_tensors, *ctx.last)
        dweight, dbias = (gradient.to(dtype) for gradient, dtype in zip(daffine.unbind(), ctx.dtypes))
        return None, None, dx, dx if branch_scale is None else dbranch, dweight, dbias, None, None, None
