"""The registered op misplace::linear_bias_gradient; misplace.kernels._C holds its kernel.

isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

_library = torch.library.Library("misplace", "FRAGMENT")
_library.define("linear_bias_gradient(Tensor dy, str isa) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.register_fake("misplace::linear_bias_gradient", lib=_library)
def _(dy, isa):
    return dy.new_empty((dy.shape[1],), dtype=torch.float32)


def bias_gradient(rows: Tensor, *, isa: str = "") -> Tensor:
    """rows [M, O] in fp32 or bf16 -> the sum of all rows, fp32 [O]; the same bits for any number of threads."""
    return torch.ops.misplace.linear_bias_gradient(rows, isa)
