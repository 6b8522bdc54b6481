"""linear by oneDNN's inner product on the CPU: the bias goes in with the product, and a weight can be packed once.

PyTorch's addmm first copies the bias over the whole result, and each of its products packs the weight anew; its sum
over rows takes up to ten times as long as reading them, so where _C is built that sums the bias's gradient.
"""

import torch
from torch import Tensor

from ..impl import Impl, why_unavailable
from .autograd import LinearWithCopies, sum_rows
from .native import bias_gradient

DTYPES = (torch.float32, torch.bfloat16)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_copy: Tensor | None, bias_copy: Tensor | None
) -> Tensor:
    if weight_copy is None:
        weight_copy, bias_copy = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    has_native = why_unavailable(Impl.NATIVE, x.device) is None
    return LinearWithCopies.apply(
        x, weight, bias, weight_copy, bias_copy, product, bias_gradient if has_native else sum_rows
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., I] @ weight.T + bias -> [..., O]; weight [O, I], plain or packed."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pack(weight: Tensor, rows: int) -> Tensor:
    """weight [O, I] in the layout that oneDNN wants for `rows` rows of x; opaque to everything but `product`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
