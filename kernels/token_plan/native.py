"""The registered op misplace::token_plan; importing misplace.kernels._C adds its kernels (csrc/)."""

import torch
from torch import Tensor

_library = torch.library.Library("misplace", "FRAGMENT")
_library.define(
    "token_plan(Tensor index, int num_patches, int num_kept, int seed, SymInt epoch, int view, "
    "int wrong_threshold) -> (Tensor src, Tensor pos, Tensor wrong)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("misplace::token_plan", lib=_library)
def _fake(index, num_patches, num_kept, seed, epoch, view, wrong_threshold):
    src = index.new_empty((index.shape[0], num_kept), dtype=torch.int32)
    return src, torch.empty_like(src), torch.empty_like(src, dtype=torch.bool)


def token_plan_native(
    index: Tensor,  # int64 [B]
    num_patches: int,
    num_kept: int,
    seed: int,
    epoch: int,
    view: int,
    wrong_threshold: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """src int32, pos int32, wrong bool, each [B, K]; seed is the unsigned seed's bits as int64."""
    return torch.ops.misplace.token_plan(index, num_patches, num_kept, seed, epoch, view, wrong_threshold)
