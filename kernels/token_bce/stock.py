"""token_bce by PyTorch's own operators, in fp32 or wider, with the gradient by hand.

As csrc/shared/token_bce.h has it, a row needs its mean, its variance and one product with a fixed vector, and its
gradient is a combination of that vector and the row: no normalised tokens are written and none are kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import compute_dtype, differentiable, gradient_dtype


def token_bce(
    tokens: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    offset: int,
    eps: float,
    token_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return differentiable(
        _compute, _rescale_, tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps
    )


def _compute(tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps, gradients):
    compute = compute_dtype(tokens)
    norm_weight, norm_bias, weight, bias, target = (
        tensor.to(compute) for tensor in (norm_weight, norm_bias, weight[0], bias, target)
    )
    h = norm_weight * weight
    h = h - h.mean()
    x = tokens[:, offset:].to(compute)
    centred = x - x.mean(dim=-1, keepdim=True)
    rstd = (torch.linalg.vector_norm(centred, dim=-1).square() / len(h) + eps).rsqrt()
    projected = rstd * (centred @ h)
    logits = projected + (norm_bias @ weight + bias)
    share = (
        token_weight.to(compute) / token_weight.to(compute).sum() if token_weight is not None else 1 / target.numel()
    )
    loss = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * share).sum()
    if not gradients:
        return loss, logits, tokens.new_empty(0, dtype=gradient_dtype(tokens)), logits.new_empty(0)

    slope = (logits.sigmoid() - target) * share
    toward_h = slope * rstd
    toward_x = toward_h * rstd * projected / len(h)
    direction, slopes = toward_h.flatten() @ centred.flatten(0, 1), slope.sum()
    d_tokens = tokens.new_empty(tokens.shape, dtype=gradient_dtype(tokens))
    d_tokens[:, :offset] = 0
    d_tokens[:, offset:] = centred.mul_(-toward_x[..., None]).addcmul_(toward_h[..., None], h)
    d_parameters = torch.cat(
        [weight * direction, weight * slopes, norm_weight * direction + norm_bias * slopes, slopes[None]]
    )
    return loss, logits, d_tokens, d_parameters


def _rescale_(d_tokens: Tensor, d_parameters: Tensor, scale: Tensor) -> None:
    d_tokens.mul_(scale)
    d_parameters.mul_(scale)
