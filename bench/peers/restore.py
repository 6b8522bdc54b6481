"""The decoder's input as MAE writes it: append mask tokens, gather everything into place, add positions."""

import torch
from torch import Tensor


def restore_indices(src: Tensor, num_patches: int) -> Tensor:  # int64 [B, L]
    """MAE's ids_restore, which its encoder has at hand: where in [kept, masked] each patch is found."""
    batch, kept = src.shape
    is_masked = torch.ones(batch, num_patches, dtype=torch.bool, device=src.device).scatter(1, src.long(), False)
    place = kept + is_masked.cumsum(1) - 1
    return place.scatter(1, src.long(), torch.arange(kept, device=src.device).expand(batch, kept))


def eager_restore(
    tokens: Tensor,  # [B, 1 + K, D]
    indices: Tensor,  # int64 [B, L]
    mask_token: Tensor,  # [D], in dtype of tokens
    position: Tensor,  # [1 + L, D], in dtype of tokens
) -> Tensor:  # [B, 1 + L, D]
    """repeat -> cat -> gather -> cat -> add."""
    batch, length, width = tokens.shape
    masked = mask_token.repeat(batch, 1 + indices.shape[1] - length, 1)
    patches = torch.cat([tokens[:, 1:], masked], dim=1)
    patches = patches.gather(1, indices[..., None].expand(-1, -1, width))
    return torch.cat([tokens[:, :1], patches], dim=1) + position
