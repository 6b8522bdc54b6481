"""The patches that a plan leaves out, for a decoder that predicts them."""

import torch
from torch import Tensor

from ..checks import require_dims, require_dtype


def dropped_patches(src: Tensor, num_patches: int) -> Tensor:  # int32 [B, K] -> int32 [B, L - K]
    """The ascending complement of each row of src in 0..L-1; the entries of a row are distinct, in any order.

    Static shapes and no word from the device to the host: it can be captured in a CUDA graph. Entries that repeat or
    lie outside [0, L) give an undefined result or an IndexError. ValueError for a shape, or K > num_patches = L;
    TypeError for a dtype.
    """
    require_dims("dropped_patches", "src", src, 2, "[B, K]")
    require_dtype("dropped_patches", "src", src, torch.int32)
    batch, kept = src.shape
    if kept > num_patches:
        raise ValueError(f"dropped_patches: {kept} distinct patches cannot be kept of {num_patches}")
    patch = torch.arange(num_patches, dtype=torch.int32, device=src.device).expand(batch, num_patches)
    is_dropped = torch.ones_like(patch, dtype=torch.bool).scatter(1, src.long(), False)
    # the j-th dropped patch goes to place j, every kept one to a place past the end
    place = torch.where(is_dropped, is_dropped.cumsum(1) - 1, num_patches - kept)
    out = src.new_zeros((batch, num_patches - kept + 1))
    return out.scatter(1, place, patch)[:, :-1].contiguous()
