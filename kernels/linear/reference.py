"""The specification of linear, in eager PyTorch."""

import torch
from torch import Tensor
from torch.autograd import Function


class _ValueOfCopy(Function):
    """The copy's value, with the gradient handed to the master unchanged."""

    @staticmethod
    def forward(ctx, master: Tensor, copy: Tensor) -> Tensor:
        return copy.to(torch.promote_types(master.dtype, torch.float32))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_copy: Tensor | None, bias_copy: Tensor | None
) -> Tensor:
    """y[..., o] = sum_i x[..., i] * w[o, i] + b[o].

    x [..., I], weight [O, I], bias [O] or None. Computed in promote_types(dtype of x, float32), returned
    in dtype of x. With copies, w and b are the copies' values; d(weight) = sum over rows of dy^T x and
    d(bias) = sum of dy go to the masters, in the masters' dtype. Copies have the dtype of x.
    Source: [S] mixed-precision training with master weights, Micikevicius et al. 2018.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    if weight_copy is not None:
        weight = _ValueOfCopy.apply(weight, weight_copy)
        bias = None if bias is None else _ValueOfCopy.apply(bias, bias_copy)
    y = x.to(compute) @ weight.to(compute).T
    return (y if bias is None else y + bias.to(compute)).to(x.dtype)
