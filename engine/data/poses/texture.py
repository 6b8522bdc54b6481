"""Textures: two hues of one luma and a pattern. Figure and clutter draw theirs alike; only the luma differs."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .dice import Dice, noise_field
from .difficulty import Difficulty

KINDS = ("plain", "stripes", "dots", "noise", "gradient")
_NOISE_SIDE = 64  # cells of the noise field; it repeats

LUMA = (0.299, 0.587, 0.114)  # of R, G, B: what JPEG and a grayscale view keep [S: Rec. 601]
# Two orthogonal unit vectors that LUMA does not see.
_ISOLUMINANT = ((0.89106266, -0.4538803, 0.0), (0.07739429, 0.15194131, -0.98535474))

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


def draw_colour(dice: Dice, luma: float, chroma: tuple[float, float]) -> Colour:
    """Any hue, of exactly this luma; chroma: (low, high), 1 the strongest that the hue has at this luma."""
    turn, strength = dice.uniform(0.0, 2 * math.pi), dice.uniform(*chroma)
    toward = [math.cos(turn) * u + math.sin(turn) * v for u, v in zip(*_ISOLUMINANT)]
    room = min(((1.0 - luma) / step if step > 0 else luma / -step) for step in toward if step)
    return tuple(min(max(luma + strength * room * step, 0.0), 1.0) for step in toward)


def draw_texture(
    dice: Dice, luma: float, chroma: tuple[float, float], size: int, difficulty: Difficulty, seed: int
) -> Texture:
    """Two hues of this luma in a pattern. Reads 9 numbers, whatever the kind."""
    kind = KINDS[dice.integer(0, len(KINDS) - 1)]
    first, second = draw_colour(dice, luma, chroma), draw_colour(dice, luma, chroma)
    angle = dice.uniform(0.0, 2 * math.pi)
    period = dice.uniform(*difficulty.texture_period) * size
    phase = (dice.uniform(0.0, _NOISE_SIDE), dice.uniform(0.0, _NOISE_SIDE))
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
