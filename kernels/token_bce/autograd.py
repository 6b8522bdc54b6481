"""What the fused implementations share: the gradients are computed with the values and scaled in backward."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Results(NamedTuple):
    """Gradients of the loss itself; both empty where only the values were asked for."""

    loss: Tensor  # scalar, compute dtype
    logits: Tensor  # [B, K], compute dtype
    d_tokens: Tensor  # [B, offset + K, D], gradient_dtype
    d_parameters: Tensor  # [3 D + 1], compute dtype: norm_weight, norm_bias, weight, bias


# compute(tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps, gradients)
Compute = Callable[..., tuple[Tensor, ...]]
# rescale_(d_tokens, d_parameters, scale): in place, nothing read or written where the scale is 1
Rescale = Callable[[Tensor, Tensor, Tensor], None]


def compute_dtype(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)


def gradient_dtype(tokens: Tensor) -> torch.dtype:
    """That of the tokens; fp16 would lose the gradient of a mean before a loss scale can reach it."""
    return torch.float32 if tokens.dtype == torch.float16 else tokens.dtype


def empty_results(tokens: Tensor, offset: int, gradients: bool) -> Results:
    """Results without values, as a kernel fills them and as torch.compile traces them."""
    batch, length, width = tokens.shape
    options = dict(dtype=compute_dtype(tokens))
    return Results(
        tokens.new_empty((), **options),
        tokens.new_empty((batch, length - offset), **options),
        tokens.new_empty((batch, length, width) if gradients else (0,), dtype=gradient_dtype(tokens)),
        tokens.new_empty((3 * width + 1,) if gradients else (0,), **options),
    )


def differentiable(
    compute: Compute,
    rescale_: Rescale,
    tokens: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    token_weight: Tensor | None,
    offset: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """loss and logits; where nothing requires a gradient, none is computed."""
    inputs = (tokens, norm_weight, norm_bias, weight, bias)
    target = target.detach()
    token_weight = None if token_weight is None else token_weight.detach()
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _WithGradients.apply(compute, rescale_, *inputs, target, token_weight, offset, eps)
    loss, logits, _, _ = compute(*inputs, target, token_weight, offset, eps, False)
    return loss, logits


class _WithGradients(Function):
    @staticmethod
    def forward(
        ctx, compute, rescale_, tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps
    ):
        inputs = (tokens, norm_weight, norm_bias, weight, bias)
        loss, logits, d_tokens, d_parameters = compute(*inputs, target, token_weight, offset, eps, True)
        ctx.rescale_, ctx.dtypes = rescale_, [tensor.dtype for tensor in inputs]
        ctx.save_for_backward(d_tokens, d_parameters)
        ctx.mark_non_differentiable(logits)
        ctx.set_materialize_grads(False)
        return loss, logits

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, _):
        if d_loss is None:
            return (None,) * 11
        d_tokens, d_parameters = _scaled(*ctx.saved_tensors, d_loss, ctx.rescale_)
        width = d_tokens.shape[-1]
        d_norm_weight, d_norm_bias, d_weight, d_bias = d_parameters.split([width, width, width, 1])
        gradients = (d_tokens, d_norm_weight, d_norm_bias, d_weight[None], d_bias)
        gradients = (
            gradient.to(dtype) if needed else None
            for gradient, dtype, needed in zip(gradients, ctx.dtypes, ctx.needs_input_grad[2:7])
        )
        return None, None, *gradients, None, None, None, None


def _scaled(d_tokens: Tensor, d_parameters: Tensor, scale: Tensor, rescale_: Rescale) -> tuple[Tensor, Tensor]:
    """Both times scale. A scale of 1, the usual one, costs no pass over the tokens outside torch.compile."""
    if not torch.compiler.is_compiling():
        if scale.device.type == "cpu":
            factor = scale.item()
            return (d_tokens, d_parameters) if factor == 1 else (d_tokens * factor, d_parameters * factor)
        # reading a scale on a GPU would stop the host; scaling in place is for gradients that nobody needs again
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            rescale_(d_tokens, d_parameters, scale)
            return d_tokens, d_parameters
    return (d_tokens.to(scale.dtype) * scale).to(d_tokens.dtype), d_parameters * scale
