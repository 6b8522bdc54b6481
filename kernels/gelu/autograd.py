"""What the registered ops of gelu share: their schemas, fake kernels and the autograd around them.

Saved for the backward: x, before the bias, and the bias; the activation is made again.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def define(library: torch.library.Library, name: str, last: str = "") -> None:
    """Declares misplace::name and name_backward; last: what an implementation asks for besides."""
    for schema in (
        f"{name}(Tensor x, Tensor? bias{last}) -> Tensor",
        f"{name}_backward(Tensor dy, Tensor x, Tensor? bias{last}) -> (Tensor dx, Tensor dbias)",
    ):
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"misplace::{name}", lambda x, *_: x.new_empty(x.shape), lib=library)
    torch.library.register_fake(f"misplace::{name}_backward", empty_gradients, lib=library)


def empty_gradients(dy, x, bias, *_):
    """dx and dbias, fp32 [D] or without elements; not yet written."""
    return x.new_empty(x.shape), x.new_empty((0,) if bias is None else bias.shape, dtype=torch.float32)


def differentiable(
    ops: tuple,  # forward, backward
    x: Tensor,
    bias: Tensor | None,
    *last,
) -> Tensor:
    """y; where nothing requires a gradient, nothing is saved."""
    inputs = (x,) if bias is None else (x, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _Gelu.apply(*ops, x, bias, last)
    return ops[0](x, bias, *last)


class _Gelu(Function):
    @staticmethod
    def forward(ctx, run, backward, x, bias, last):
        ctx.backward_op, ctx.last = backward, last
        ctx.save_for_backward(x, bias)
        return run(x, bias, *last)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, bias = ctx.saved_tensors
        dx, dbias = ctx.backward_op(dy, x, bias, *ctx.last)
        return None, None, dx, None if bias is None else dbias.to(bias.dtype), None
