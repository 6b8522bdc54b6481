"""The registered op misplace::gelu; misplace.kernels._C holds its kernels. Saved for the backward: x.

isa names vector instructions ("plain", "avx2", "avx512"); "" takes the best.
"""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)

_library = torch.library.Library("misplace", "FRAGMENT")
_library.define("gelu(Tensor x, str isa) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define("gelu_backward(Tensor dy, Tensor x, str isa) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.register_fake("misplace::gelu", lib=_library)
def _(x, isa):
    return x.new_empty(x.shape)


@torch.library.register_fake("misplace::gelu_backward", lib=_library)
def _(dy, x, isa):
    return x.new_empty(x.shape)


def _save(ctx, inputs, output):
    x, ctx.isa = inputs
    ctx.save_for_backward(x)


def _backward(ctx, dy):
    return torch.ops.misplace.gelu_backward(dy, *ctx.saved_tensors, ctx.isa), None


torch.library.register_autograd("misplace::gelu", _backward, setup_context=_save, lib=_library)


def gelu(x: Tensor, *, isa: str = "") -> Tensor:
    """Any shape; the result is contiguous."""
    return torch.ops.misplace.gelu(x, isa)
