"""Segmentation by one linear layer on made tokens, and mIoU against a count pixel by pixel."""

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from misplace.engine.evaluation.ratio_scores import mean_ratio
from misplace.engine.evaluation.segmentation_probe import (
    fit_segmentation,
    layers_for,
    overlaps,
    segment,
    upsampled,
    whitening,
)

SIDE, PATCH, CLASSES = 6, 4, 3


def halves(count, seed):
    """Masks of vertical bands of whole classes, and tokens that say the class of their patch plainly."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, CLASSES, (count,), generator=generator)
    patches = classes[:, None].expand(count, SIDE * SIDE)
    tokens = torch.eye(8)[patches] + 0.05 * torch.randn(count, SIDE * SIDE, 8, generator=generator)
    masks = classes[:, None, None].expand(count, SIDE * PATCH, SIDE * PATCH).to(torch.uint8)
    return tokens, masks.contiguous()


def miou(predicted, masks, classes=CLASSES):
    intersection, union = overlaps(predicted, masks, classes)
    return float(mean_ratio(intersection.double().sum(0), union.double().sum(0)))


def test_separable_tokens_are_segmented_without_error():
    tokens, masks = halves(96, 0)
    test, truth = halves(40, 1)
    head = fit_segmentation(tokens.half(), masks, CLASSES, steps=100)
    predicted = segment(head, test.half(), SIDE * PATCH)
    assert torch.equal(predicted, truth)
    assert miou(predicted, truth) == 1.0


def test_a_border_between_patches_is_found():
    """Left half one class, right half another, or the other way round: logits cross at the border of the patches."""
    left = torch.arange(SIDE).repeat(SIDE) < SIDE // 2
    flips = torch.arange(64) % 2 == 0
    classes = (left[None] ^ flips[:, None]).long()
    tokens = torch.eye(4)[classes]
    grid = classes.view(64, SIDE, SIDE).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).to(torch.uint8)
    head = fit_segmentation(tokens, grid, 2, steps=100)
    assert miou(segment(head, tokens, SIDE * PATCH), grid, 2) == 1.0


def test_tokens_that_say_nothing_give_the_most_common_class():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(128, 24, 24, generator=generator) < 0.2).to(torch.uint8)
    tokens = torch.randn(128, SIDE * SIDE, 4, generator=generator)
    predicted = segment(fit_segmentation(tokens[:96], masks[:96], 2, steps=200), tokens[96:], 24)
    assert not predicted.any()
    background = float((masks[96:] == 0).double().mean())
    assert miou(predicted, masks[96:], 2) == pytest.approx(background / 2)


def test_overlaps_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    predicted, masks = (torch.randint(0, 4, (7, 20, 20), generator=generator, dtype=torch.uint8) for _ in range(2))
    expected = jaccard_score(masks.flatten().numpy(), predicted.flatten().numpy(), average="macro")
    assert miou(predicted, masks, 4) == pytest.approx(expected, abs=1e-12)
    intersection, union = overlaps(predicted, masks, 4)
    for image in range(7):
        for c in range(4):
            p, m = predicted[image].numpy() == c, masks[image].numpy() == c
            assert int(intersection[image, c]) == np.count_nonzero(p & m)
            assert int(union[image, c]) == np.count_nonzero(p | m)


def test_a_class_that_is_nowhere_is_left_out():
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    assert miou(masks, masks, 5) == 1.0


def test_masks_are_compared_at_their_own_resolution():
    """Logits [1, 1] and [0, 2] of two patches cross where a straight line says: after 3/4 of the way between them."""
    logits = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[0.0, 4.0], [0.0, 4.0]]]])
    row = upsampled(logits, 16)[0].argmax(0)[8].tolist()
    # centres at 3.5 and 11.5; 4 (x - 3.5) / 8 > 1 from x > 5.5
    assert row == [0] * 6 + [1] * 10


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (3, 5, 7, 11)), (6, (1, 2, 3, 5)), (24, (7, 11, 15, 23)), (1, (0,)), (2, (0, 1)), (0, ())],
)
def test_blocks_lie_at_the_same_shares_of_any_depth(depth, blocks):
    assert layers_for(depth) == blocks


def test_whitened_tokens_have_unit_covariance_and_dead_channels_do_no_harm():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(40, 36, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    tokens = torch.cat([mixed, torch.full((40, 36, 1), 5.0)], dim=2)
    mean, basis = whitening(tokens)
    white = (tokens.flatten(0, 1) - mean) @ basis.T
    covariance = white.T @ white / len(white)
    variances = torch.linalg.eigvalsh((tokens.flatten(0, 1) - mean).T.cov(correction=0)[:6, :6].double())
    expected = variances / (variances + 1e-3 * variances.sum() / 7)  # the ridge is of the mean over all 7 channels
    torch.testing.assert_close(covariance.diagonal()[1:].double(), expected, rtol=1e-3, atol=1e-4)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    assert torch.isfinite(basis).all() and torch.isfinite(whitening(torch.ones(3, 4, 2))[1]).all()


def test_a_seed_gives_one_head():
    tokens, masks = halves(70, 0)
    one, two = (fit_segmentation(tokens, masks, CLASSES, steps=9, seed=1) for _ in range(2))
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
