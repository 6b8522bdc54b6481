"""The specification of restore, in eager PyTorch: mask tokens everywhere, the kept ones over them, then positions."""

import torch
from torch import Tensor


def restore(
    tokens: Tensor,
    src: Tensor,
    mask_token: Tensor,
    position: Tensor,
) -> Tensor:
    """out[b, 0] = tokens[b, 0] + position[0]
    out[b, 1 + src[b, k]] = tokens[b, 1 + k] + position[1 + src[b, k]]
    out[b, 1 + l] = mask_token + position[1 + l]   for every other l in 0..L-1

    tokens [B, 1 + K, D], src [B, K] with distinct entries in a row, mask_token [D], position [1 + L, D]
    -> [B, 1 + L, D]. Computed in promote_types(dtype of tokens, float32), returned in dtype of tokens.
    IndexError where src is not in [0, L); where a patch is named twice it gets one of its tokens.
    Source: [S] MAE (He et al. 2022): the decoder's input is the full set of tokens, a shared mask token at the place of
    each dropped patch, with positional embeddings added to all; the class token keeps its place in front.
    """
    num_patches = position.shape[0] - 1
    if not torch.compiler.is_compiling() and src.numel() and (src.min() < 0 or src.max() >= num_patches):
        found = f"{int(src.min())} .. {int(src.max())}"
        raise IndexError(f"restore: src must be in [0, {num_patches}), found {found}")
    dtype, compute = tokens.dtype, torch.promote_types(tokens.dtype, torch.float32)
    tokens, mask_token, position = tokens.to(compute), mask_token.to(compute), position.to(compute)
    patches = mask_token.expand(len(tokens), num_patches, -1)
    patches = patches.scatter(1, src.long()[..., None].expand(-1, -1, tokens.shape[2]), tokens[:, 1:])
    return torch.cat([tokens[:, :1], patches], dim=1).add(position).to(dtype)
