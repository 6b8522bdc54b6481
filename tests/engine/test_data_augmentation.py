"""Augmentation parameters: pure functions, in range, with the stated probabilities."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misplace.engine.data import AugmentConfig, draw_view_parameters, open_source
from misplace.engine.data.crop import ATTEMPTS, random_boxes
from misplace.engine.errors import UserError
from misplace.engine.resolve import resolve

DRAW = {"seed": 5, "epoch": 2, "view": 1}


def drawn_views(index, sizes, config, *, seed, epoch, view):
    """The parameters of one of two views of 224 pixels."""
    return draw_view_parameters(index, sizes, config, config.view_kinds(2, 224)[view], seed, epoch, view)


def same_size(count: int, height: int = 224, width: int = 224) -> torch.Tensor:
    return torch.tensor([[height, width]]).expand(count, 2)


sides = st.integers(1, 12_000)
fractions = st.floats(0.01, 1.0)


@settings(max_examples=150, deadline=None)
@given(sides, sides, fractions, fractions, st.floats(0.2, 3.0), st.floats(0.2, 3.0), st.integers(0, 2**40))
def test_boxes_are_inside_and_in_range(height, width, scale_a, scale_b, ratio_a, ratio_b, index):
    scale, ratio = tuple(sorted((scale_a, scale_b))), tuple(sorted((ratio_a, ratio_b)))
    config = AugmentConfig(crop_scale=scale, crop_ratio=ratio)
    indices = torch.arange(index, index + 16)
    drawn = drawn_views(indices, same_size(16, height, width), config, **DRAW)
    left, top, right, bottom = drawn.box.unbind(1)
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    box_width, box_height = right - left, bottom - top
    assert (box_width > 0).all() and (box_height > 0).all()
    aspect, share = box_width / box_height, box_width * box_height / (width * height)
    assert (aspect >= ratio[0] * (1 - 1e-9)).all() and (aspect <= ratio[1] * (1 + 1e-9)).all()
    fallback = torch.isclose(left + right, torch.tensor(float(width), dtype=torch.float64)) & torch.isclose(
        top + bottom, torch.tensor(float(height), dtype=torch.float64)
    )
    in_scale = (share >= scale[0] * (1 - 1e-9)) & (share <= scale[1] * (1 + 1e-9))
    assert (in_scale | fallback).all()


def test_a_box_that_never_fits_is_the_largest_in_the_middle():
    numbers = torch.full((2, ATTEMPTS, 4), 0.99, dtype=torch.float64)
    sizes = torch.tensor([[10, 1000], [1000, 10]])
    wide, tall = random_boxes(numbers, sizes, (0.9, 1.0), (3 / 4, 4 / 3)).tolist()
    assert wide == pytest.approx([500 - 20 / 3, 0, 500 + 20 / 3, 10])
    assert tall == pytest.approx([0, 500 - 20 / 3, 10, 500 + 20 / 3])


def test_the_first_attempt_that_fits_is_taken():
    numbers = torch.full((1, ATTEMPTS, 4), 0.999, dtype=torch.float64)
    numbers[0, 3] = torch.tensor([0.5, 0.5, 0.0, 1.0])
    numbers[0, 4] = 0.0
    box = random_boxes(numbers, torch.tensor([[100, 100]]), (0.08, 1.0), (3 / 4, 4 / 3))[0].tolist()
    side = 100 * math.sqrt(0.54)
    assert box == pytest.approx([0, 100 - side, side, 100])


def test_crops_follow_the_stated_distribution():
    """Areas are uniform where every attempt fits; log ratios always are."""
    config = AugmentConfig(crop_scale=(0.1, 0.5))
    drawn = drawn_views(torch.arange(20_000), same_size(20_000), config, **DRAW)
    left, top, right, bottom = (drawn.box / 224).unbind(1)
    area, log_ratio = (right - left) * (bottom - top), ((right - left) / (bottom - top)).log()
    sigma = 1 / math.sqrt(12 * 20_000)
    assert abs(area.mean() - 0.3) < 4 * 0.4 * sigma
    assert abs(log_ratio.mean()) < 4 * 2 * math.log(4 / 3) * sigma
    corner = left / (1 - (right - left))
    assert abs(corner.mean() - 0.5) < 4 * sigma


def test_probabilities_and_ranges():
    config, count = AugmentConfig(), 20_000
    drawn = [drawn_views(torch.arange(count), same_size(count), config, seed=5, epoch=2, view=v) for v in (0, 1)]

    def share(flags, p):
        assert abs(flags.double().mean() - p) <= 4 * math.sqrt(p * (1 - p) / count)

    for view, p in enumerate(drawn):
        share(p.flip, 0.5)
        share(p.grayscale, 0.2)
        share(p.brightness != 1, 0.8)
        share(p.blur_sigma > 0, (1.0, 0.1)[view])
        share(p.solarize < 256, (0.0, 0.2)[view])
        assert torch.equal(p.brightness != 1, p.hue != 0)
        blurred = p.blur_sigma[p.blur_sigma > 0]
        assert blurred.min() >= 0.1 and blurred.max() < 2.0
        for value, centre, spread in (
            (p.brightness, 1, 0.4),
            (p.contrast, 1, 0.4),
            (p.saturation, 1, 0.2),
            (p.hue, 0, 0.1),
        ):
            assert 0.95 * spread < (value - centre).abs().max() <= spread


def test_a_row_depends_on_its_own_sample_only():
    index = torch.tensor([9, 70_000, 2**40, 9])
    sizes = torch.tensor([[50, 60], [500, 375], [28, 28], [50, 60]])
    together = drawn_views(index, sizes, AugmentConfig(), **DRAW).rows()
    alone = [drawn_views(index[i : i + 1], sizes[i : i + 1], AugmentConfig(), **DRAW).rows()[0] for i in range(4)]
    assert together == alone and together[0] == together[3]


@pytest.mark.parametrize("change", [{"seed": 6}, {"epoch": 3}, {"view": 0}])
def test_every_part_of_the_key_matters(change):
    index, sizes = torch.arange(64), same_size(64)
    one = drawn_views(index, sizes, AugmentConfig(), **DRAW)
    other = drawn_views(index, sizes, AugmentConfig(), **{**DRAW, **change})
    assert (one.box != other.box).any(1).all()


def test_boxes_scale_with_the_image():
    """The same crop in relative terms from an image and from its half: what a pre-shrunk copy must give."""
    index = torch.arange(64)
    whole = drawn_views(index, same_size(64, 400, 300), AugmentConfig(), **DRAW)
    half = drawn_views(index, same_size(64, 200, 150), AugmentConfig(), **DRAW)
    torch.testing.assert_close(whole.box, 2 * half.box, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.2, 1.5)},
        {"crop_ratio": (-1.0, 1.0)},
        {"blur_sigma": (0.0, 2.0)},
        {"jitter_p": 1.5},
        {"blur_p": (0.5, -0.1)},
        {"brightness": float("nan")},
        {"hue": 0.6},
        {"solarize_threshold": 300},
    ],
)
def test_values_out_of_range_are_named(change):
    with pytest.raises(UserError, match=f"^augment: {next(iter(change))}"):
        dataclasses.replace(AugmentConfig(), **change)


def test_each_view_needs_its_probabilities():
    with pytest.raises(UserError, match="blur_p needs 3 values"):
        AugmentConfig().view_kinds(3, 224)


@pytest.mark.parametrize(
    ("image", "patch", "local"), [(224, 16, 96), (28, 4, 12), (96, 8, 40), (16, 8, 8), (224, 1, 96)]
)
def test_local_crops_are_three_sevenths_in_whole_patches(image, patch, local):
    assert AugmentConfig().with_local_size(image, patch).local_size == local
    assert AugmentConfig(local_size=17).with_local_size(image, patch).local_size == 17


def test_local_sides_that_do_not_fit_are_one_line(runs, images, tmp_path):
    config = runs.tiny_config("dino", images, tmp_path)
    for size, said in ((13, "local-size 13 is not a multiple of --model.patch-size 6; try 12"), (3, "try 6")):
        augment = dataclasses.replace(config.data.augment, local_size=size)
        other = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=augment))
        with pytest.raises(UserError, match=said):
            resolve(other, open_source(str(images)))
