"""Signed distances, in pixels, to the few shapes that pictures are made of: negative inside.

Arrays see only +, -, *, /, sqrt, floor, min and max: correctly rounded everywhere, so equal on every machine.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Point = tuple[float, float]
Bounds = tuple[float, float, float, float]  # left, top, right, bottom


class Shape(Protocol):
    def bounds(self) -> Bounds: ...

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x: [1, w], y: [h, 1] pixel centres. Returns float32 [h, w]."""
        ...


def union(bounds: list[Bounds]) -> Bounds:
    left, top, right, bottom = zip(*bounds)
    return min(left), min(top), max(right), max(bottom)


@dataclass(frozen=True)
class Capsule:
    """A thick line whose radius runs from `near` at `start` to `far` at `end`."""

    start: Point
    end: Point
    near: float
    far: float

    def bounds(self) -> Bounds:
        (x0, y0), (x1, y1) = self.start, self.end
        near = (x0 - self.near, y0 - self.near, x0 + self.near, y0 + self.near)
        return union([near, (x1 - self.far, y1 - self.far, x1 + self.far, y1 + self.far)])

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        (x0, y0), (x1, y1) = self.start, self.end
        dx, dy = x1 - x0, y1 - y0
        px, py = x - x0, y - y0
        squared = max(dx * dx + dy * dy, 1e-6)
        along = ((px * (dx / squared)) + (py * (dy / squared))).clip(0.0, 1.0)
        across_x, across_y = px - along * dx, py - along * dy
        radius = self.near + (self.far - self.near) * along
        return np.sqrt(across_x * across_x + across_y * across_y) - radius


@dataclass(frozen=True)
class Ellipse:
    """Half axes (width, height), turned by `angle` degrees. The distance is exact on the rim only."""

    centre: Point
    half: Point
    angle: float

    def bounds(self) -> Bounds:
        return _square(self.centre, max(self.half))

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = _turned(x, y, self.centre, self.angle)
        u, v = u * (1.0 / self.half[0]), v * (1.0 / self.half[1])
        return (np.sqrt(u * u + v * v) - 1.0) * min(self.half)


@dataclass(frozen=True)
class Rectangle:
    """Half extents (width, height), turned by `angle` degrees. Mitred corners."""

    centre: Point
    half: Point
    angle: float

    def bounds(self) -> Bounds:
        return _square(self.centre, math.hypot(*self.half))

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = _turned(x, y, self.centre, self.angle)
        return np.maximum(np.abs(u) - self.half[0], np.abs(v) - self.half[1])


@dataclass(frozen=True)
class Blob:
    """The union of a few discs."""

    discs: tuple[tuple[Point, float], ...]

    def bounds(self) -> Bounds:
        return union([_square(centre, radius) for centre, radius in self.discs])

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        inside = None
        for (cx, cy), radius in self.discs:
            disc = np.sqrt((x - cx) * (x - cx) + (y - cy) * (y - cy)) - radius
            inside = disc if inside is None else np.minimum(inside, disc)
        return inside


def _square(centre: Point, radius: float) -> Bounds:
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius


def _turned(x: np.ndarray, y: np.ndarray, centre: Point, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    px, py = x - centre[0], y - centre[1]
    return px * cos + py * sin, py * cos - px * sin
