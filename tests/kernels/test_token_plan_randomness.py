"""A plan is a pure function of its name, and its draws have the distribution that the method states."""

import math

import pytest
import torch

from misplace.kernels.testing.impls import runnable
from misplace.kernels.token_plan import TokenPlan, num_kept, token_plan
from misplace.kernels.token_plan.api import SUPPORTED

RUNNABLE = runnable(SUPPORTED)
USUAL = dict(num_patches=196, drop_rate=0.75, wrong_rate=0.2, seed=3, epoch=1, view=0)
# a false alarm at 5 sigma is rarer than 1 in a million, and the seeds are fixed
SIGMAS = 5


def equal(a: TokenPlan, b: TokenPlan) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def require_chi_square(statistic: float, degrees: int) -> None:
    """Chi-square has mean `degrees` and variance 2 * `degrees`; too even is as wrong as too uneven."""
    assert abs(statistic - degrees) < SIGMAS * math.sqrt(2 * degrees), (statistic, degrees)


@pytest.mark.parametrize("device, impl", RUNNABLE)
def test_a_row_depends_on_its_own_index_alone(device, impl):
    index = torch.arange(100, device=device) * 1_000_003
    whole = token_plan(index, **USUAL, impl=impl)
    halves = [token_plan(part, **USUAL, impl=impl) for part in index.split([37, 63])]
    assert equal(whole, TokenPlan(*(torch.cat(parts) for parts in zip(*halves, strict=True))))
    backwards = token_plan(index.flip(0), **USUAL, impl=impl)
    assert equal(whole, TokenPlan(*(part.flip(0) for part in backwards)))
    alone = token_plan(index[41:42], **USUAL, impl=impl)
    assert equal(alone, TokenPlan(*(part[41:42] for part in whole)))


def test_threads_do_not_matter():
    threads = torch.get_num_threads()
    try:
        plans = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            plans.append(token_plan(torch.arange(300), **USUAL))
    finally:
        torch.set_num_threads(threads)
    assert equal(plans[0], plans[1]) and equal(plans[0], plans[2])


@pytest.mark.parametrize("device, impl", RUNNABLE)
@pytest.mark.parametrize(
    "changed", [dict(seed=4), dict(seed=3 + 2**32), dict(epoch=2), dict(view=1), dict(index=2**32)]
)
def test_another_name_is_another_plan(device, impl, changed):
    index = torch.arange(8, device=device)
    other = dict(changed)
    shifted = index + other.pop("index", 0)
    one, another = token_plan(index, **USUAL, impl=impl), token_plan(shifted, **USUAL | other, impl=impl)
    assert (one.src != another.src).any(dim=1).all()
    assert (one.wrong != another.wrong).any()


@pytest.mark.parametrize("drop_rate", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("num_patches", [36, 49, 196, 197, 256])
@pytest.mark.parametrize("wrong_rate", [0.05, 0.2, 0.5])
def test_share_of_wrong_tokens(num_patches, drop_rate, wrong_rate):
    images, kept = 2000, num_kept(num_patches, drop_rate)
    dropped = num_patches - kept
    lone_remainder = kept * wrong_rate + 4 * math.sqrt(kept * wrong_rate * (1 - wrong_rate)) > dropped
    plan = token_plan(
        torch.arange(images),
        **USUAL | dict(num_patches=num_patches, drop_rate=drop_rate, wrong_rate=wrong_rate),
    )
    # where a lone remainder can occur it takes at most one token of an image away
    allowance = 1 / kept if lone_remainder else 0.0
    error = plan.wrong.double().mean().item() - wrong_rate
    sigma = math.sqrt(wrong_rate * (1 - wrong_rate) / (images * kept))
    assert -4 * sigma - allowance < error < 4 * sigma


@pytest.mark.parametrize("drop_rate", [0.25, 0.75])
def test_every_patch_is_kept_as_often(drop_rate):
    images, patches = 4000, 196
    kept = num_kept(patches, drop_rate)
    plan = token_plan(torch.arange(images), **USUAL | dict(drop_rate=drop_rate))
    counts = torch.bincount(plan.src.flatten(), minlength=patches).double()
    share = kept / patches
    # drawn without replacement: the counts' covariance has rank L - 1 and eigenvalue p(1-p) L/(L-1)
    spread = images * share * (1 - share) * patches / (patches - 1)
    require_chi_square(float(((counts - images * share) ** 2).sum() / spread), patches - 1)


def test_every_patch_is_wrong_as_often():
    plan = token_plan(torch.arange(8000), **USUAL)
    counts = torch.bincount(plan.src[plan.wrong], minlength=196).double()
    expected = counts.sum() / 196
    require_chi_square(float(((counts - expected) ** 2).sum() / expected), 195)


def test_every_wrong_pair_of_patch_and_position_is_as_likely():
    patches = 36
    plan = token_plan(torch.arange(20000), **USUAL | dict(num_patches=patches, drop_rate=0.75, wrong_rate=0.2))
    pairs = plan.src[plan.wrong].long() * patches + plan.pos[plan.wrong]
    counts = torch.bincount(pairs, minlength=patches * patches).double().view(patches, patches)
    assert counts.diagonal().sum() == 0
    counts = counts[~torch.eye(patches, dtype=torch.bool)]
    expected = counts.sum() / counts.numel()
    require_chi_square(float(((counts - expected) ** 2).sum() / expected), counts.numel() - 1)


def test_neighbouring_samples_epochs_and_views_are_independent():
    patches, kept = 196, 49
    base = token_plan(torch.arange(4000), **USUAL)
    for other in (dict(epoch=2), dict(view=1), dict(seed=4)):
        plan = token_plan(torch.arange(4000), **USUAL | other)
        common = (plan.src[:, :, None] == base.src[:, None, :]).sum(dim=(1, 2)).double()
        # hypergeometric: 49 of 196 drawn twice
        mean = kept * kept / patches
        variance = mean * (1 - kept / patches) * (patches - kept) / (patches - 1)
        assert abs(common.mean() - mean) < SIGMAS * math.sqrt(variance / 4000)
