"""What is behind the figure: a gradient and clutter. Reads the section `background`, knows no pose."""

import numpy as np

from .dice import Dice
from .difficulty import Difficulty
from .shapes import Blob, Capsule, Ellipse, Rectangle, Shape
from .texture import Texture, draw_colour, draw_texture

_KINDS = ("rectangle", "ellipse", "line", "blob")


def draw_gradient(dice: Dice, luma: float, x: np.ndarray, y: np.ndarray, difficulty: Difficulty) -> np.ndarray:
    """A fade between two hues of this luma, float32 [3, h, w]."""
    chroma = difficulty.background_chroma
    first = np.array(draw_colour(dice, luma, chroma), dtype=np.float32)
    second = np.array(draw_colour(dice, luma, chroma), dtype=np.float32)
    dx, dy = dice.around(1.0), dice.around(1.0)
    length = abs(dx) + abs(dy) + 1e-6
    share = x * (dx / length / x.size) + y * (dy / length / y.size)
    low = min(dx, 0.0) / length + min(dy, 0.0) / length
    return first[:, None, None] + (second - first)[:, None, None] * (share - low)


def draw_clutter(dice: Dice, luma: float, size: int, difficulty: Difficulty, seed: int) -> list[tuple[Shape, Texture]]:
    """Shapes of this luma, from the farthest to the nearest. Reads at most 21 numbers a shape."""
    clutter = []
    for _ in range(dice.integer(*difficulty.clutter_count)):
        texture = draw_texture(dice, luma, difficulty.background_chroma, size, difficulty, seed)
        clutter.append((_draw_shape(dice, size, difficulty), texture))
    return clutter


def _draw_shape(dice: Dice, size: int, difficulty: Difficulty) -> Shape:
    kind = _KINDS[dice.integer(0, len(_KINDS) - 1)]
    centre = (dice.uniform(0.0, size), dice.uniform(0.0, size))
    width = dice.uniform(*difficulty.clutter_size) * size
    height = dice.uniform(*difficulty.clutter_size) * size
    angle = dice.uniform(0.0, 180.0)
    if kind == "rectangle":
        return Rectangle(centre, (width, height), angle)
    if kind == "ellipse":
        return Ellipse(centre, (width, height), angle)
    if kind == "line":
        # As long and as thick as a limb, so that a limb alone says nothing.
        end = (centre[0] + dice.around(0.4) * size, centre[1] + dice.around(0.4) * size)
        return Capsule(centre, end, 0.2 * width, 0.2 * height)
    discs = [(centre, 0.6 * width)]
    for _ in range(2):
        near = (centre[0] + dice.around(0.8) * width, centre[1] + dice.around(0.8) * height)
        discs.append((near, dice.uniform(0.3, 0.7) * height))
    return Blob(tuple(discs))
