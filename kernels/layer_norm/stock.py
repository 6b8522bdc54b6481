"""layer_norm by PyTorch's own operators: fp32 statistics, one pass each way."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        return _LowPrecisionOnCPU.apply(x, weight, bias, eps)
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


class _LowPrecisionOnCPU(Function):
    """PyTorch's CPU backward sums the weight gradients in the dtype of x: in bf16 a sum of ones stops at 256.

    So the backward runs its fp32 kernel on widened x and dy.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = torch.native_layer_norm(x, x.shape[-1:], weight.float(), bias.float(), eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        gradients = torch.ops.aten.native_layer_norm_backward(
            dy.float(),
            x.float(),
            x.shape[-1:],
            mean,
            scale,
            weight.float(),
            bias.float(),
            ctx.needs_input_grad[:3],
        )
        dtypes = (x.dtype, weight.dtype, bias.dtype)
        return *(g if g is None else g.to(dtype) for g, dtype in zip(gradients, dtypes)), None
