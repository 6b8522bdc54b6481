"""Projection and prediction heads."""

import itertools
import math

import torch
from torch import nn

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
