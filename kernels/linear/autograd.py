"""A product of copies whose gradients go to the masters."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def sum_rows(rows: Tensor) -> Tensor:
    """[M, O] -> [O], in fp32 or wider."""
    return rows.sum(dim=0, dtype=torch.promote_types(rows.dtype, torch.float32))


class LinearWithCopies(Function):
    """Multiplies the copies by product(x, weight, bias); sends the gradients to the masters."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_copy: Tensor,
        bias_copy: Tensor | None,
        product: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        bias_gradient: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight_copy)
        ctx.weight_dtype = weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.bias_gradient = bias_gradient
        return product(x, weight_copy, bias_copy)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_copy = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight_copy
        if ctx.needs_input_grad[1]:
            dweight = (rows.T @ x.reshape(-1, x.shape[-1])).to(ctx.weight_dtype)
        if ctx.needs_input_grad[2]:
            dbias = ctx.bias_gradient(rows).to(ctx.bias_dtype)
        return dx, dweight, dbias, None, None, None, None
