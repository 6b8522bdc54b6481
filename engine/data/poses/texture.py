"""Textures: two colours and a pattern. Figure and clutter draw theirs from the same distribution."""

import colorsys
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .dice import Dice, noise_field
from .difficulty import Difficulty

KINDS = ("plain", "stripes", "dots", "noise", "gradient")
_NOISE_SIDE = 64  # cells of the noise field; it repeats

Colour = tuple[float, float, float]


class Texture(NamedTuple):
    kind: str
    first: Colour
    second: Colour
    cos: float  # of the pattern's direction
    sin: float
    period: float  # pixels
    phase: tuple[float, float]  # periods
    seed: int  # of the noise field


def draw_colour(dice: Dice, lightness: float, difficulty: Difficulty) -> Colour:
    """Any hue, around the given lightness (the mean of the three channels, before clipping)."""
    rgb = colorsys.hsv_to_rgb(dice.uniform(0.0, 1.0), 1.0, 1.0)
    strength, mean = dice.uniform(*difficulty.saturation) * 0.5, sum(rgb) / 3
    return tuple(min(max(lightness + strength * (channel - mean), 0.0), 1.0) for channel in rgb)


def draw_texture(
    dice: Dice, lightness: float, brighter: float, size: int, difficulty: Difficulty, seed: int
) -> Texture:
    """A texture that stands out from a background of this lightness: brighter with probability `brighter`,
    as long as there is room on that side. Reads 13 numbers, whatever the kind.
    """
    step = dice.uniform(*difficulty.separation)
    step = step if dice.chance(brighter) else -step
    lightness += step if 0.0 <= lightness + step <= 1.0 else -step
    contrast = dice.uniform(*difficulty.texture_contrast)
    kind = KINDS[dice.integer(0, len(KINDS) - 1)]
    first = draw_colour(dice, lightness + contrast, difficulty)
    second = draw_colour(dice, lightness - contrast, difficulty)
    angle = dice.uniform(0.0, 2 * math.pi)
    period = dice.uniform(*difficulty.texture_period) * size
    phase = (dice.uniform(0.0, _NOISE_SIDE), dice.uniform(0.0, _NOISE_SIDE))
    if dice.chance(0.5):
        first, second = second, first
    return Texture(kind, first, second, math.cos(angle), math.sin(angle), period, phase, seed)


def colours(texture: Texture, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x: [1, w], y: [h, 1] pixel centres. Returns float32 [3, h, w] or, for plain, [3, 1, 1]."""
    first = np.array(texture.first, dtype=np.float32)[:, None, None]
    if texture.kind == "plain":
        return first
    step = np.array(texture.second, dtype=np.float32)[:, None, None] - first
    return first + step * _mix(texture, x, y)


def _mix(texture: Texture, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The second colour's share, float32 [h, w] in [0, 1]."""
    scale = 1.0 / texture.period
    if texture.kind == "gradient":
        scale *= 0.2
    u = x * (texture.cos * scale) + y * (texture.sin * scale) + texture.phase[0]
    if texture.kind in ("stripes", "gradient"):
        wave = _wave(u)
        return wave if texture.kind == "gradient" else _edge(wave, texture.period)
    v = y * (texture.cos * scale) - x * (texture.sin * scale) + texture.phase[1]
    if texture.kind == "dots":
        a, b = _wave(u), _wave(v)
        return _edge(np.sqrt(a * a + b * b), texture.period)
    field = _noise(texture.seed)
    return field[v.astype(np.int32) % _NOISE_SIDE, u.astype(np.int32) % _NOISE_SIDE]


def _wave(u: np.ndarray) -> np.ndarray:
    """A triangle wave in [0, 1], of period 1."""
    return np.abs(2.0 * (u - np.floor(u)) - 1.0)


def _edge(wave: np.ndarray, period: float) -> np.ndarray:
    """A step at one half, one pixel wide."""
    return ((wave - 0.5) * (0.5 * period) + 0.5).clip(0.0, 1.0)


@lru_cache(maxsize=2)
def _noise(seed: int) -> np.ndarray:
    return noise_field(_NOISE_SIDE, seed=seed)
