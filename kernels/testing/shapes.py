"""Sizes and layouts that break kernels: 1, primes, 2^k +- 1, none at all, the real ones, gaps in memory."""

import torch
from torch import Tensor

# 50 and 197 are ViT/16 at 224 with a quarter and all of its patches, 37 that of 96 pixels.
SEQUENCE_LENGTHS = (1, 2, 13, 31, 33, 37, 50, 127, 129, 197)
WIDTHS = (1, 7, 31, 33, 64, 127, 192, 257)
HEAD_DIMS = (1, 31, 32, 33, 64)
# leading dimensions of activations
ROWS = ((0,), (1,), (257,), (2, 37), (3, 0), (1, 2, 3))


def with_gaps(tensor: Tensor) -> Tensor:
    """The same values, every second element of a NaN-filled (or zero, for integers) tensor."""
    if tensor.dim() == 0:
        return tensor
    fill = float("nan") if tensor.is_floating_point() else 0
    return torch.stack([tensor, torch.full_like(tensor, fill)], dim=-1)[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values with the first and the last dimension exchanged in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def offset(tensor: Tensor) -> Tensor:
    """The same values, contiguous, one element past an aligned address."""
    storage = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    storage[1:] = tensor.flatten()
    return storage[1:].view(tensor.shape)


LAYOUTS = {"contiguous": torch.clone, "gaps": with_gaps, "transposed": transposed, "offset": offset}
