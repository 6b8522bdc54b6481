"""token_plan on the GPU in one launch: one program makes one image's plan in registers.

Formula         reference.py; the same bits.
Bytes moved     8 B in, 9 B K out: 0.5 MB for 1,024 images at K = 49, far below a launch.
Operations      per image L Philox calls and one bitonic sort of n keys, n the next power of two of L
                (n log2(n)^2 / 4 exchanges).
Saved           nothing: a plan has no gradient.
Against eager   some thirty launches over [B, L] int64 become one.

The key carries the patch (10 bits: L <= 1024) and its wrong flag below the 32 random bits, so one sort moves
all three. From which rank a token takes its position is then arithmetic on ranks, and a token that takes its
own was not misplaced.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _minimum(a, b):
    return tl.minimum(a, b)


@triton.jit
def _sorted_keys(index, seed, epoch, view, threshold, NUM_PATCHES: tl.constexpr, BLOCK: tl.constexpr):
    """Keys word0 << 11 | patch << 1 | wrong in patch order and in ascending order; padding sorts last."""
    patch = tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.uint32)
    word0, word1, _, _ = tl.philox(
        seed.to(tl.int64),
        patch.to(tl.uint32) | (view << 16).to(tl.uint32),  # Stream.TOKEN_PLAN is 0
        zero | epoch.to(tl.int64).to(tl.uint32),
        zero | index.to(tl.uint32),
        zero | (index >> 32).to(tl.uint32),
    )
    flag = (word1.to(tl.int64) < threshold).to(tl.int64)
    key = (word0.to(tl.int64) << 11) | (patch.to(tl.int64) << 1) | flag
    key = tl.where(patch < NUM_PATCHES, key, 1 << 62)
    return key, tl.sort(key)


@triton.jit
def _exchange(remaining, rank, BLOCK: tl.constexpr):
    """For each remaining token the rank of the next one; the last one gets the first's."""
    own = tl.where(remaining, rank, BLOCK)
    onwards = tl.associative_scan(own, 0, _minimum, reverse=True)
    following = tl.gather(onwards, tl.minimum(rank + 1, BLOCK - 1), 0)
    is_last = (following == BLOCK) | (rank == BLOCK - 1)
    return tl.where(is_last, tl.min(own, 0), following)


@triton.jit(do_not_specialize=["seed", "epoch", "view", "threshold"])
def token_plan_kernel(
    index_ptr,  # int64 [B]
    src_ptr,  # int32 [B, K]
    pos_ptr,  # int32 [B, K]
    wrong_ptr,  # bool [B, K]
    seed: tl.int64,
    epoch: tl.int64,
    view: tl.int32,
    threshold: tl.int64,
    NUM_PATCHES: tl.constexpr,
    NUM_KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    rank = tl.arange(0, BLOCK)
    key, ascending = _sorted_keys(tl.load(index_ptr + image), seed, epoch, view, threshold, NUM_PATCHES, BLOCK)
    patch = ((ascending >> 1) & 1023).to(tl.int32)  # by rank
    is_kept = rank < NUM_KEPT
    flag = tl.where(is_kept, (ascending & 1).to(tl.int32), 0)
    ordinal = tl.cumsum(flag, 0) - 1
    taken_from = tl.where(flag == 1, NUM_KEPT + ordinal, rank)
    if 2 * NUM_KEPT > NUM_PATCHES:  # else every wrong token finds a dropped position
        remaining = (flag == 1) & (ordinal >= NUM_PATCHES - NUM_KEPT)
        taken_from = tl.where(remaining, _exchange(remaining, rank, BLOCK), taken_from)
    position = tl.gather(patch, taken_from, 0)

    last_kept = tl.sum(tl.where(rank == NUM_KEPT - 1, ascending, 0), 0)
    slot_of_patch = tl.cumsum((key <= last_kept).to(tl.int32), 0) - 1
    out = image * NUM_KEPT + tl.gather(slot_of_patch, patch, 0)
    tl.store(src_ptr + out, patch, mask=is_kept)
    tl.store(pos_ptr + out, position, mask=is_kept)
    tl.store(wrong_ptr + out, position != patch, mask=is_kept)


def launch_sizes(num_patches: int) -> tuple[int, int]:
    """BLOCK and num_warps: two keys a thread, or four where that would be more than eight warps."""
    block = max(32, triton.next_power_of_2(num_patches))
    return block, min(8, max(1, block // 64))


_library = torch.library.Library("misplace", "FRAGMENT")
_library.define(
    "token_plan_triton(Tensor index, int num_patches, int num_kept, int seed, SymInt epoch, int view, "
    "int wrong_threshold) -> (Tensor src, Tensor pos, Tensor wrong)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("misplace::token_plan_triton", lib=_library)
def _empty_plan(index, num_patches, num_kept, seed, epoch, view, wrong_threshold):
    src = index.new_empty((index.shape[0], num_kept), dtype=torch.int32)
    return src, torch.empty_like(src), torch.empty_like(src, dtype=torch.bool)


def _launch(index, num_patches, num_kept, seed, epoch, view, wrong_threshold):
    index = index.contiguous()
    src, pos, wrong = _empty_plan(index, num_patches, num_kept, seed, epoch, view, wrong_threshold)
    if index.shape[0]:
        block, num_warps = launch_sizes(num_patches)
        token_plan_kernel[(index.shape[0],)](
            index, src, pos, wrong, seed, epoch, view, wrong_threshold,
            NUM_PATCHES=num_patches, NUM_KEPT=num_kept, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
    return src, pos, wrong


_library.impl("token_plan_triton", _launch, "CUDA")
_library.impl("token_plan_triton", _launch, "CPU")  # the interpreter; api.py refuses anything else there


def token_plan_triton(
    index: Tensor,  # int64 [B]
    num_patches: int,
    num_kept: int,
    seed: int,
    epoch: int,
    view: int,
    wrong_threshold: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """src int32, pos int32, wrong bool, each [B, K]; seed is the unsigned seed's bits as int64."""
    return torch.ops.misplace.token_plan_triton(index, num_patches, num_kept, seed, epoch, view, wrong_threshold)
