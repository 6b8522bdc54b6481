"""What the implementations of restore share: schemas, fake kernels and the autograd around a forward and a backward.

Saved for the backward: src. The gradient of the tokens is rows of the output's gradient as they are; those of
mask_token and position are sums of its rows, in fp32 or wider.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def sum_dtype(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)


def define(library: torch.library.Library, name: str, last: str = "") -> None:
    """Declares misplace::name and name_backward; last: what an implementation asks for besides."""
    for schema in (
        f"{name}(Tensor tokens, Tensor src, Tensor mask_token, Tensor position{last}) -> Tensor",
        f"{name}_backward(Tensor gradient, Tensor src, bool of_position{last}) "
        "-> (Tensor d_tokens, Tensor d_mask_token, Tensor d_position)",
    ):
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"misplace::{name}", empty_output, lib=library)
    torch.library.register_fake(f"misplace::{name}_backward", empty_gradients, lib=library)


def empty_output(tokens, src, mask_token, position, *_):
    return tokens.new_empty((len(tokens), *position.shape))


def empty_gradients(gradient, src, of_position, *_):
    """Of tokens, mask_token and position, the last without elements where it is not wanted; not yet written."""
    batch, length, width = gradient.shape
    sums = dict(dtype=sum_dtype(gradient))
    return (
        gradient.new_empty((batch, 1 + src.shape[1], width)),
        gradient.new_empty((width,), **sums),
        gradient.new_empty((length, width) if of_position else (0,), **sums),
    )


def differentiable(
    ops: tuple,  # forward, backward
    tokens: Tensor,
    src: Tensor,
    mask_token: Tensor,
    position: Tensor,
    *last,
) -> Tensor:
    """The output; where nothing requires a gradient, nothing is saved."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (tokens, mask_token, position)):
        return _Restore.apply(*ops, tokens, src, mask_token, position, last)
    return ops[0](tokens, src, mask_token, position, *last)


class _Restore(Function):
    @staticmethod
    def forward(ctx, run, backward, tokens, src, mask_token, position, last):
        ctx.backward_op, ctx.last, ctx.dtypes = backward, last, (mask_token.dtype, position.dtype)
        ctx.save_for_backward(src)
        return run(tokens, src, mask_token, position, *last)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (src,) = ctx.saved_tensors
        of_position = ctx.needs_input_grad[5]
        d_tokens, d_mask_token, d_position = ctx.backward_op(gradient, src, of_position, *ctx.last)
        d_mask_token = d_mask_token.to(ctx.dtypes[0])
        d_position = d_position.to(ctx.dtypes[1]) if of_position else None
        return None, None, d_tokens, None, d_mask_token, d_position, None
