"""The registered op misplace::layer_norm; misplace.kernels._C holds its kernels.

Saved for the backward: x, and mean and 1 / sqrt(variance + eps) of every row. isa names vector instructions
("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)

_library = torch.library.Library("misplace", "FRAGMENT")
for _schema in (
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, str isa) -> (Tensor y, Tensor mean, Tensor scale)",
    "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor scale, str isa) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.register_fake("misplace::layer_norm", lib=_library)
def _(x, weight, bias, eps, isa):
    mean = x.new_empty((x.numel() // x.shape[-1],), dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


@torch.library.register_fake("misplace::layer_norm_backward", lib=_library)
def _(dy, x, weight, mean, scale, isa):
    dweight = x.new_empty(weight.shape, dtype=torch.float32)
    return x.new_empty(x.shape), dweight, torch.empty_like(dweight)


def _save(ctx, inputs, output):
    x, weight, bias, _, ctx.isa = inputs
    _, mean, scale = output
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, weight, mean, scale)
    ctx.mark_non_differentiable(mean, scale)


def _backward(ctx, dy, *_):
    weight = ctx.saved_tensors[1]
    dx, dweight, dbias = torch.ops.misplace.layer_norm_backward(dy, *ctx.saved_tensors, ctx.isa)
    return dx, dweight.to(weight.dtype), dbias.to(ctx.bias_dtype), None, None


torch.library.register_autograd("misplace::layer_norm", _backward, setup_context=_save, lib=_library)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, isa: str = "") -> Tensor:
    """x [..., D], weight and bias [D] in any floating dtype; the result is contiguous."""
    return torch.ops.misplace.layer_norm(x, weight, bias, eps, isa)[0]
