"""The loss as training code writes it: the final LayerNorm of the patch tokens, a Linear and BCEWithLogits.

In the dtype of the tokens, as under autocast to bf16 with LayerNorm in it, and the loss itself in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def eager_token_bce(
    tokens: Tensor,  # [B, 1 + K, D]
    norm_weight: Tensor,  # [D]
    norm_bias: Tensor,  # [D]
    weight: Tensor,  # [1, D]
    bias: Tensor,  # [1]
    target: Tensor,  # bool [B, K]
) -> tuple[Tensor, Tensor]:  # loss scalar, logits [B, K]
    """Slice copy -> LayerNorm -> Linear -> binary_cross_entropy_with_logits."""
    patches = tokens[:, 1:].contiguous()
    normalised = F.layer_norm(patches, norm_weight.shape, norm_weight, norm_bias, 1e-6)
    logits = F.linear(normalised, weight, bias).squeeze(-1).float()
    return F.binary_cross_entropy_with_logits(logits, target.float()), logits.detach()


def forward_backward(function, tensors: tuple[Tensor, ...], target: Tensor) -> tuple[Tensor, ...]:
    """loss, logits and the gradients of all tensors."""
    loss, logits = function(*tensors, target)
    return loss.detach(), logits, *torch.autograd.grad(loss, tensors)
