"""token_plan: the one interface through which every method says what the transformer sees."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import require_dims, require_dtype
from ..impl import Impl, choose

MAX_PATCHES = 1024
SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.NATIVE, Impl.TRITON, Impl.REFERENCE),
}


class TokenPlan(NamedTuple):
    """Token k of image b is made from patch src[b, k] and told that it lies at position pos[b, k]."""

    src: Tensor  # int32 [B, K]
    pos: Tensor  # int32 [B, K], -1 = the learned "no position" vector
    wrong: Tensor  # bool [B, K], pos != src and pos >= 0


def num_kept(num_patches: int, drop_rate: float) -> int:
    """K = floor(L * (1 - drop_rate) + 1e-6).

    num_patches: L, in [1, 1024]. drop_rate: share of patches to drop, in [0, 1).
    Raises ValueError outside these ranges, and where not one patch would be kept.
    """
    if not 1 <= num_patches <= MAX_PATCHES:
        raise ValueError(f"token_plan: num_patches must be in [1, {MAX_PATCHES}], not {num_patches}")
    if not 0 <= drop_rate < 1:
        raise ValueError(f"token_plan: drop_rate must be in [0, 1), not {drop_rate}")
    kept = math.floor(num_patches * (1 - drop_rate) + 1e-6)
    if kept == 0:
        raise ValueError(f"token_plan: drop_rate {drop_rate} keeps none of {num_patches} patches")
    return kept


def dense_plan(batch: int, num_patches: int, device: torch.device | str) -> TokenPlan:
    """Every patch at its own place: src = pos = 0..L-1, [B, L]. What every teacher sees."""
    src = torch.arange(num_patches, dtype=torch.int32, device=device).repeat(batch, 1)
    return TokenPlan(src, src.clone(), torch.zeros_like(src, dtype=torch.bool))


def token_plan(
    index: Tensor,  # int64 [B]
    *,
    num_patches: int,
    drop_rate: float,
    wrong_rate: float,
    seed: int,
    epoch: int,
    view: int,
    impl: Impl | str = "auto",
) -> TokenPlan:  # [B, K] each, K = num_kept(num_patches, drop_rate)
    """The sparse, misplaced plan of DILEMMA (arXiv 2204.04788); reference.py states its rules.

    index: global sample indices; a row of the result depends on its own index alone, never on the batch.
    num_patches: L, in [1, 1024]. drop_rate: share of patches dropped, in [0, 1). wrong_rate: probability with
    which each kept token is given a wrong position, in [0, 1] (theta). seed: in [0, 2^64). epoch: in
    [0, 2^32). view: in [0, 256). All implementations agree to the bit.

    Raises TypeError (index not int64), ValueError (index not [B]; a number outside its range; K = 0) and
    ImplUnavailableError (impl named and not available here, with the reason).
    """
    kept = num_kept(num_patches, drop_rate)
    _check(index, wrong_rate, seed, epoch, view)
    run = _implementation(choose("token_plan", impl, index.device, SUPPORTED))
    signed_seed = seed - 2**64 if seed >= 2**63 else seed  # an op's integers are int64
    return TokenPlan(*run(index, num_patches, kept, signed_seed, epoch, view, round(wrong_rate * 2**32)))


def _check(index: Tensor, wrong_rate: float, seed: int, epoch: int, view: int) -> None:
    require_dtype("token_plan", "index", index, torch.int64)
    require_dims("token_plan", "index", index, 1, "[B]")
    if not 0 <= wrong_rate <= 1:
        raise ValueError(f"token_plan: wrong_rate must be in [0, 1], not {wrong_rate}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"token_plan: seed must be in [0, 2^64), not {seed}")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"token_plan: epoch must be in [0, 2^32), not {epoch}")
    if not 0 <= view < 256:
        raise ValueError(f"token_plan: view must be in [0, 256), not {view}")


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import token_plan_native as run
        case Impl.TRITON:
            from .triton import token_plan_triton as run
        case _:
            from .reference import token_plan_reference as run
    return run
