"""The operations on pixels, against Pillow's own and against their formulas in float64."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from misplace.engine.data import image_ops

RNG = np.random.default_rng(0)
COLOUR = np.asarray(Image.fromarray(RNG.integers(0, 256, (9, 8, 3), dtype=np.uint8)).resize((40, 36)))
GRAY = COLOUR[:, :, :1].copy()


def rounded(x: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(x + 0.5), 0, 255).astype(np.uint8)


def close(a: np.ndarray, b: np.ndarray, levels: int = 1) -> bool:
    return np.abs(a.astype(int) - b.astype(int)).max() <= levels


def enhanced(operation, image: np.ndarray, factor: float) -> np.ndarray:
    """Pillow's own operation, which rounds its degenerate image first."""
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    return image_ops.as_array(operation(picture).enhance(factor))


def test_crop_of_whole_pixels_is_crop_then_resize():
    """But for the border, where the filter now sees the image beyond the crop."""
    picture = Image.fromarray(COLOUR)
    ours = image_ops.crop_resize(picture, (3.0, 4.0, 33.0, 24.0), 16)
    theirs = np.asarray(picture.crop((3, 4, 33, 24)).resize((16, 16), Image.Resampling.BICUBIC))
    assert ours.shape == theirs.shape
    assert close(ours[3:-3, 4:-4], theirs[3:-3, 4:-4], 1)


def test_crop_of_the_whole_image_at_its_size_changes_nothing():
    square = COLOUR[:36, :36]
    assert np.array_equal(image_ops.crop_resize(Image.fromarray(square), (0, 0, 36, 36), 36), square)
    gray = image_ops.crop_resize(Image.fromarray(square[:, :, 0]), (0, 0, 36, 36), 36)
    assert np.array_equal(gray[:, :, 0], square[:, :, 0])


def test_fractions_of_a_pixel_move_the_crop():
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (60, 1))
    picture = Image.fromarray(ramp)
    still = image_ops.crop_resize(picture, (10, 10, 40, 40), 30).astype(int)
    moved = image_ops.crop_resize(picture, (10.5, 10, 40.5, 40), 30).astype(int)
    assert np.array_equal(moved - still, np.full((30, 30, 1), 2))


@pytest.mark.parametrize("image", [COLOUR, GRAY], ids=["colour", "gray"])
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.37])
def test_brightness(image, factor):
    ours = image_ops.jitter(image, factor, 1, 1, 0, False)
    assert np.array_equal(ours, rounded(image * factor))
    assert close(ours, enhanced(ImageEnhance.Brightness, image, factor))


@pytest.mark.parametrize("image", [COLOUR, GRAY], ids=["colour", "gray"])
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_contrast(image, factor):
    ours = image_ops.jitter(image, 1, factor, 1, 0, False)
    luma = image @ image_ops.LUMA if image.shape[2] == 3 else image
    assert np.array_equal(ours, rounded(factor * image + (1 - factor) * luma.mean()))
    assert close(ours, enhanced(ImageEnhance.Contrast, image, factor), 2)


@pytest.mark.parametrize("factor", [0.0, 0.8, 1.2])
def test_saturation(factor):
    ours = image_ops.jitter(COLOUR, 1, 1, factor, 0, False)
    assert close(ours, rounded(factor * COLOUR + (1 - factor) * (COLOUR @ image_ops.LUMA)[..., None]))
    assert close(ours, enhanced(ImageEnhance.Color, COLOUR, factor), 2)


def test_hue_turns_colours_and_keeps_luma():
    matrix = image_ops.hue_matrix(0.07)
    np.testing.assert_allclose(image_ops.LUMA @ matrix, image_ops.LUMA, atol=1e-12)
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3), atol=1e-12)
    np.testing.assert_allclose(image_ops.hue_matrix(0.0), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(image_ops.hue_matrix(-0.07) @ matrix, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("colour", [(200, 80, 80), (80, 200, 80), (80, 80, 200), (180, 160, 70)])
def test_hue_turns_the_way_of_hsv(colour):
    """Not by the same angle, as YIQ is not HSV, but the same way and roughly as far."""
    image = np.full((4, 4, 3), colour, dtype=np.uint8)
    turned = image_ops.jitter(image, 1, 1, 1, 0.05, False)[0, 0] / 255
    before, after = colorsys.rgb_to_hsv(*np.array(colour) / 255)[0], colorsys.rgb_to_hsv(*turned)[0]
    assert 0.02 < (after - before) % 1 < 0.1


def test_grayscale():
    ours = image_ops.jitter(COLOUR, 1, 1, 1, 0, True)
    assert (ours == ours[:, :, :1]).all()
    assert close(ours, rounded((COLOUR @ image_ops.LUMA)[..., None].repeat(3, 2)))


def test_jitter_is_its_operations_one_after_the_other():
    """Brightness, contrast, saturation, hue, grayscale in float64, rounded and clipped once."""
    for gray in (False, True):
        x = COLOUR * 0.9
        x = 1.2 * x + (1 - 1.2) * (x @ image_ops.LUMA).mean()
        x = 0.85 * x + (1 - 0.85) * (x @ image_ops.LUMA)[..., None]
        x = x @ image_ops.hue_matrix(-0.04).T
        if gray:
            x = (x @ image_ops.LUMA)[..., None].repeat(3, 2)
        assert close(image_ops.jitter(COLOUR, 0.9, 1.2, 0.85, -0.04, gray), rounded(x))


def test_jitter_that_changes_nothing():
    assert np.array_equal(image_ops.jitter(COLOUR, 1, 1, 1, 0, False), COLOUR)
    inverse = image_ops.jitter(COLOUR, 2.0, 0.5, 1, 0, False)  # gain 1, but an offset
    assert np.array_equal(inverse, rounded(COLOUR + (COLOUR @ image_ops.LUMA).mean()))


def test_colour_is_nothing_to_one_channel():
    assert np.array_equal(image_ops.jitter(GRAY, 1, 1, 0.3, 0.2, True), GRAY)
    both = image_ops.jitter(GRAY, 0.8, 1.3, 0.3, 0.2, True)
    assert np.array_equal(both, image_ops.jitter(GRAY, 0.8, 1.3, 1, 0, False))


def test_mean_luma_is_exact():
    assert image_ops.mean_luma(GRAY) == GRAY.mean()
    assert image_ops.mean_luma(COLOUR) == pytest.approx((COLOUR @ image_ops.LUMA).mean(), rel=1e-12)
    assert image_ops.mean_luma(np.full((4000, 3, 1), 255, dtype=np.uint8)) == 255


@pytest.mark.parametrize("image", [COLOUR, GRAY], ids=["colour", "gray"])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_blur_is_close_to_a_gaussian(image, sigma):
    ours = image_ops.gaussian_blur(image, sigma)
    assert ours.shape == image.shape
    taps = np.exp(-0.5 * (np.arange(-12, 13) / sigma) ** 2)
    padded = np.pad(image.astype(float), ((12, 12), (12, 12), (0, 0)), mode="edge")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, taps / taps.sum(), mode="valid")
    error = np.abs(ours - padded)
    assert error.mean() < 1.0 and error.max() < 0.03 * 255
    assert sigma < 0.5 or error.mean() < 0.1 * np.abs(image - padded).mean()


def test_solarize_is_pillows():
    for threshold in (0, 128, 255, 256):
        theirs = np.asarray(ImageOps.solarize(Image.fromarray(COLOUR), threshold))
        assert np.array_equal(image_ops.solarize(COLOUR, threshold), theirs)


def test_flip():
    assert np.array_equal(image_ops.flip(COLOUR)[:, 0], COLOUR[:, -1])
    assert np.array_equal(image_ops.flip(image_ops.flip(COLOUR)), COLOUR)


def test_no_operation_writes_into_its_input():
    image = COLOUR.copy()
    image.setflags(write=False)
    image_ops.jitter(image, 0.9, 1.2, 0.85, -0.04, True)
    image_ops.gaussian_blur(image, 1.0)
    image_ops.solarize(image, 128)
    assert np.array_equal(image, COLOUR)
