"""Layers with fp32 master parameters and, on demand, low-precision copies to compute with.

Masters are what is trained, saved and averaged; the copies are refreshed by the optimiser in the same pass that
updates the masters, so that no forward casts a weight.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from misplace import kernels

from ..distributed import synchronised_batch_norm, world_size
from ..implementations import AUTO


class Linear(nn.Module):
    """y = x W^T + b. weight: [out, in] fp32; bias: [out] fp32 or None."""

    impls = AUTO

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.register_buffer("weight_copy", None, persistent=False)
        self.register_buffer("bias_copy", None, persistent=False)
        self.packed = None  # the weight as kernels.pack_weight gives it, inside packed_weights alone

    def forward(self, x: Tensor, *, with_bias: bool = True) -> Tensor:
        """with_bias=False leaves the bias to whoever takes the result."""
        x = x.to(self.weight.dtype if self.weight_copy is None else self.weight_copy.dtype)
        return kernels.linear(
            x,
            self.weight,
            self.bias if with_bias else None,
            weight_copy=self.weight_copy,
            bias_copy=self.bias_copy if with_bias else None,
            packed=self.packed,
            impl=self.impls["linear"],
        )


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension; statistics in fp32 whatever the input."""

    impls = AUTO

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return kernels.layer_norm(x, self.weight, self.bias, eps=self.eps, impl=self.impls["layer_norm"])

    def of_sum(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """x + branch and its norm, in one pass; without gradients the sum is written over x."""
        return kernels.add_layer_norm(
            x,
            branch,
            self.weight,
            self.bias,
            eps=self.eps,
            inplace=not torch.is_grad_enabled(),
            impl=self.impls["add_layer_norm"],
        )


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm over the vectors [B, D] of all ranks, in fp32 whatever the input."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and world_size() > 1):
            return super().forward(x.float())
        normed, mean, variance = synchronised_batch_norm(x.float(), self.eps)
        rows = len(x) * world_size()
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
        self.num_batches_tracked += 1
        return normed * self.weight + self.bias if self.affine else normed


@contextlib.contextmanager
def packed_weights(module: nn.Module, rows: int) -> Iterator[None]:
    """Inside: every Linear below `module` multiplies a weight packed once, for inputs of about `rows` rows.

    Without gradients, and while no weight changes.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Linear)]
    try:
        for layer in layers:
            weight = layer.weight if layer.weight_copy is None else layer.weight_copy
            layer.packed = kernels.pack_weight(weight, rows, impl=layer.impls["linear"])
        yield
    finally:
        for layer in layers:
            layer.packed = None


def use_low_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """Give every Linear below `module` copies in `dtype` (fp32: no copies)."""
    for layer in module.modules():
        if isinstance(layer, Linear) and dtype != torch.float32:
            layer.weight_copy = layer.weight.detach().to(dtype)
            layer.bias_copy = None if layer.bias is None else layer.bias.detach().to(dtype)


def copied_parameters(module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every (master, copy) pair below `module`."""
    for layer in module.modules():
        if isinstance(layer, Linear):
            for name in ("weight", "bias"):
                copy = getattr(layer, f"{name}_copy")
                if copy is not None:
                    yield getattr(layer, name), copy
