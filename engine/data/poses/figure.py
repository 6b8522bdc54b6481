"""From a pose to a figure in the frame: joints, limbs, clothes. Reads the sections `pose` and `figure`."""

import math

from .dice import Dice
from .difficulty import Difficulty
from .shapes import Capsule, Point, union
from .skeleton import NECK, PART_KINDS, PART_NAMES, SHAPES, Pose
from .texture import Texture, draw_texture

_GRID = 256  # joints sit on 1/256 pixel, so that another libm's last bit does not reach a pixel


def draw_figure(dice: Dice, pose: Pose, size: int, difficulty: Difficulty) -> dict[str, Capsule]:
    """The shape of each part, in pixels, by name; all inside the frame of `size` pixels."""
    mirror = -1.0 if dice.chance(0.5) else 1.0
    tilt = dice.around(difficulty.tilt)
    noise = [dice.around(difficulty.joint_noise) for _ in PART_NAMES]
    angles = [angle + tilt + extra for angle, extra in zip(pose.directions(), noise)]
    stretch = {kind: 1.0 + dice.around(difficulty.length_noise) for kind in SHAPES}
    girth = dice.uniform(*difficulty.girth)
    body = _body(pose.widths, dict(zip(PART_NAMES, angles)), stretch, girth)
    torso = dice.uniform(*difficulty.torso) * size
    return _place(body, mirror, torso, (dice.uniform(0.0, 1.0), dice.uniform(0.0, 1.0)), size, difficulty)


def draw_clothes(dice: Dice, size: int, difficulty: Difficulty, seed: int) -> dict[str, Texture]:
    """A texture and a luma of its own for each part, by name."""
    return {
        name: draw_texture(
            dice, dice.uniform(*difficulty.figure_luma), difficulty.figure_chroma, size, difficulty, seed
        )
        for name in PART_NAMES
    }


def _along(start: Point, degrees: float, length: float) -> Point:
    radians = math.radians(degrees)
    return start[0] + length * math.sin(radians), start[1] - length * math.cos(radians)


def _body(
    widths: tuple[float, float], angles: dict[str, float], stretch: dict[str, float], girth: float
) -> dict[str, Capsule]:
    """The parts in torso lengths, hips at the origin."""
    ends: dict[str, Point] = {}
    parts: dict[str, Capsule] = {}
    chest = _along((0.0, 0.0), angles["torso"], SHAPES["torso"].length * stretch["torso"])
    for name, kind in zip(PART_NAMES, PART_KINDS):
        if kind == "torso":
            start = (0.0, 0.0)
        elif kind == "head":
            start = _along(chest, angles["head"], NECK)
        elif kind.startswith("upper"):
            centre, width = (chest, widths[0]) if kind == "upper-arm" else ((0.0, 0.0), widths[1])
            side = 90.0 if name.startswith("right") else -90.0
            start = _along(centre, _facing(angles["torso"]) + side, width)
        else:
            start = ends[name.replace("lower", "upper")]
        shape = SHAPES[kind]
        ends[name] = _along(start, angles[name], shape.length * stretch[kind])
        parts[name] = Capsule(start, ends[name], shape.near * girth, shape.far * girth)
    return parts


def _facing(torso: float) -> float:
    """An upside-down figure keeps its right side on the viewer's right: its limbs then need no crossing."""
    return torso + 180.0 if math.cos(math.radians(torso)) < -0.9 else torso


def _place(
    body: dict[str, Capsule], mirror: float, torso: float, position: Point, size: int, difficulty: Difficulty
) -> dict[str, Capsule]:
    """Mirrors, scales and moves the body into the frame; position (0, 0) is the top left of what fits."""
    left, top, right, bottom = union([part.bounds() for part in body.values()])
    if mirror < 0:
        left, right = -right, -left
    room = size * (1.0 - 2 * difficulty.margin)
    factor = min(torso, room / max(right - left, bottom - top))
    x = size * difficulty.margin + position[0] * (room - factor * (right - left)) - factor * left
    y = size * difficulty.margin + position[1] * (room - factor * (bottom - top)) - factor * top

    def to_pixels(point: Point) -> Point:
        return _snap(x + factor * mirror * point[0]), _snap(y + factor * point[1])

    return {
        name: Capsule(to_pixels(p.start), to_pixels(p.end), _snap(p.near * factor), _snap(p.far * factor))
        for name, p in body.items()
    }


def _snap(value: float) -> float:
    return round(value * _GRID) / _GRID
