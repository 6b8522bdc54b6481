"""Projection and prediction heads."""

import itertools
import math

import torch
from torch import Tensor, nn

from misplace import kernels

from ..implementations import AUTO
from .layers import BatchNorm, Linear


def _initialise(layer: Linear) -> Linear:
    """torch.nn.Linear's own default, which the sources leave in place for their heads. [S]"""
    bound = 1 / math.sqrt(layer.weight.shape[1])
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound)
    return layer


def batch_norm_mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear without bias, BatchNorm, ReLU, ...; the last BatchNorm is not affine and has no ReLU. [S] (MoCo v3)

    widths: in, hidden..., out. Maps [B, in] to [B, out].
    """
    layers: list[nn.Module] = []
    for depth, (inside, outside) in enumerate(itertools.pairwise(widths)):
        last = depth == len(widths) - 2
        layers += [_initialise(Linear(inside, outside, bias=False)), BatchNorm(outside, affine=not last)]
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class GeluMlp(nn.Module):
    """Linear, BatchNorm where asked for, GELU, Linear, ...; maps [B, in] to [B, out]."""

    impls = AUTO

    def __init__(self, widths: tuple[int, ...], *, batch_norm: bool):
        super().__init__()
        self.layers = nn.ModuleList(Linear(*pair) for pair in itertools.pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths[1:-1] if batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        for depth, layer in enumerate(self.layers[:-1]):
            if self.norms:
                x = kernels.gelu(self.norms[depth](layer(x)), impl=self.impls["gelu"])
            else:
                x = kernels.gelu(layer(x, with_bias=False), layer.bias, impl=self.impls["gelu"])
        return self.layers[-1](x)


def gelu_mlp(widths: tuple[int, ...], *, batch_norm: bool = False) -> GeluMlp:
    """Truncated normal of deviation 0.02 and zero biases, as DINO's head. [S]

    widths: in, hidden..., out.
    """
    mlp = GeluMlp(widths, batch_norm=batch_norm)
    for layer in mlp.layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return mlp
