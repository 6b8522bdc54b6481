"""One picture, from its number: a pure function of (index, seed, split, size, difficulty)."""

from typing import NamedTuple

import numpy as np

from .background import draw_clutter, draw_gradient
from .dice import SPLITS, Dice, roll
from .difficulty import DEFAULT, Difficulty
from .figure import draw_clothes, draw_figure
from .shapes import Shape
from .skeleton import PAINT_ORDER, PART_NAMES, POSES
from .texture import Texture, colours


class Rendered(NamedTuple):
    image: np.ndarray  # uint8 [size, size, 3]
    mask: np.ndarray  # uint8 [size, size]: 0 background, 1 + i for part i of PART_NAMES, as visible
    part_centres: np.ndarray  # int64 [10, 2]: (x, y) of the visible pixel nearest to the visible centroid
    visibility: np.ndarray  # float64 [10]: share of the part's pixels that no other part hides
    class_id: int


class Drawn(NamedTuple):
    """The name of a picture."""

    split: str
    index: int


def render_image(
    index: int, *, seed: int = 0, split: str = "train", size: int = 112, difficulty: Difficulty = DEFAULT
) -> Rendered:
    """Picture number `index` of a split. Class = index mod number of poses, so splits are balanced."""
    return render_images(range(index, index + 1), seed=seed, split=split, size=size, difficulty=difficulty)[0]


def render_images(
    indices: range, *, seed: int, split: str, size: int, difficulty: Difficulty = DEFAULT
) -> list[Rendered]:
    """As render_image, with one draw of random numbers for all. ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    rolled = roll(indices, seed=seed, split=split)
    return [_render(index % len(POSES), dice, size, seed, difficulty) for index, dice in zip(indices, rolled)]


def render_mixed(
    pose: Drawn, clothes: Drawn, background: Drawn, *, seed: int = 0, size: int = 112, difficulty: Difficulty = DEFAULT
) -> Rendered:
    """The pose of one picture in the clothes of a second before the background and in the light of a third.

    Each may be of another split; the class is the pose's. All three the same: the picture itself.
    """
    own, dresser, behind = (
        roll(range(drawn.index, drawn.index + 1), seed=seed, split=drawn.split)[0]
        for drawn in (pose, clothes, background)
    )
    worn = _dress(dresser["figure"], size, difficulty, seed)
    return _render(pose.index % len(POSES), behind | {"pose": own["pose"]}, size, seed, difficulty, worn)


class _Worn(NamedTuple):
    clothes: dict[str, Texture]
    shading: float


def _dress(dice: Dice, size: int, difficulty: Difficulty, seed: int) -> _Worn:
    return _Worn(draw_clothes(dice, size, difficulty, seed), dice.uniform(*difficulty.shading))


def _render(
    class_id: int, dice: dict[str, Dice], size: int, seed: int, difficulty: Difficulty, worn: _Worn | None = None
) -> Rendered:
    """worn: in place of what the dice would dress the figure in."""
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    x, y = centres[None, :], centres[:, None]
    luma = dice["background"].uniform(*difficulty.background_luma)
    pixels = draw_gradient(dice["background"], luma, x, y, difficulty)
    for shape, texture in draw_clutter(dice["background"], luma, size, difficulty, seed):
        _paint(pixels, x, y, shape, texture, 0.0)

    drawn = _dress(dice["figure"], size, difficulty, seed)
    clothes, shading = worn or drawn
    light = _draw_light(dice["figure"], x, y, difficulty)
    figure = draw_figure(dice["pose"], POSES[class_id], size, difficulty)
    mask = np.zeros((size, size), dtype=np.uint8)
    areas = np.zeros(len(PART_NAMES), dtype=np.int64)
    for name in PAINT_ORDER:
        part = PART_NAMES.index(name)
        window, inside = _paint(pixels, x, y, figure[name], clothes[name], shading)
        mask[window][inside] = part + 1
        areas[part] = np.count_nonzero(inside)
    image = ((pixels * light).clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return Rendered(np.ascontiguousarray(image), mask, *_measure(mask, areas, figure), class_id)


def _draw_light(dice: Dice, x: np.ndarray, y: np.ndarray, difficulty: Difficulty) -> np.ndarray:
    """A factor that fades over the picture, float32 [h, w], around 1."""
    strength = dice.uniform(*difficulty.lighting)
    dx, dy = dice.around(1.0), dice.around(1.0)
    scale = 2.0 * strength / ((abs(dx) + abs(dy) + 1e-6) * x.size)
    return (x - 0.5 * x.size) * (dx * scale) + (y - 0.5 * x.size) * (dy * scale) + np.float32(1.0)


def _paint(
    pixels: np.ndarray, x: np.ndarray, y: np.ndarray, shape: Shape, texture: Texture, shading: float
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Paints in place, one pixel of anti-aliasing. Returns the window it touched and bool [h, w]: inside."""
    left, top, right, bottom = shape.bounds()
    rows = slice(max(int(top) - 1, 0), max(int(bottom) + 2, 0))
    columns = slice(max(int(left) - 1, 0), max(int(right) + 2, 0))
    x, y = x[:, columns], y[rows]
    distance = shape.distance(x, y)
    coverage = (0.5 - distance).clip(0.0, 1.0)
    paint = colours(texture, x, y)
    if shading:
        rim = (1.0 + distance * (1.0 / shape.near)).clip(0.0, 1.0)
        paint = paint * (1.0 - shading * (rim * rim))
    window = pixels[:, rows, columns]
    window += coverage * (paint - window)
    return (rows, columns), distance <= 0.0


def _measure(mask: np.ndarray, areas: np.ndarray, figure: dict[str, Shape]) -> tuple[np.ndarray, np.ndarray]:
    """Part centres [10, 2] and visibility [10]. A hidden part's centre is the middle of its bounds."""
    centres = np.zeros((len(PART_NAMES), 2), dtype=np.int64)
    visible = np.bincount(mask.ravel(), minlength=len(PART_NAMES) + 1)[1:]
    ys, xs = np.nonzero(mask)
    parts = mask[ys, xs]
    for part, name in enumerate(PART_NAMES):
        count = visible[part]
        if count == 0:
            left, top, right, bottom = figure[name].bounds()
            centres[part] = int((left + right) / 2), int((top + bottom) / 2)
            continue
        chosen = parts == part + 1
        px, py = xs[chosen], ys[chosen]
        nearest = ((count * px - px.sum()) ** 2 + (count * py - py.sum()) ** 2).argmin()
        centres[part] = px[nearest], py[nearest]
    return centres, visible / np.maximum(areas, 1)
