"""A view with its token plan drawn on it: kept and misplaced tokens, and what the head thought of each."""

import math

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL_SIDE = 384
SUPERSAMPLING = 3
DIM = (112, 119, 130)
DIM_SHARE = 0.8
MARK = (255, 98, 20)
CASING = (20, 22, 26, 190)
COLOUR_MAP = "viridis"


def as_rgb(view: np.ndarray) -> np.ndarray:
    """uint8 [S, S, 1 or 3] -> uint8 [S, S, 3]"""
    return np.repeat(view, 3, axis=2) if view.shape[2] == 1 else view


def magnified(view: np.ndarray) -> int:
    """Pixels of a panel per pixel of the view."""
    return max(1, math.ceil(PANEL_SIDE / len(view)))


def draw_tokens(
    view: np.ndarray,  # uint8 [S, S, C]
    src: np.ndarray,  # int [K]
    pos: np.ndarray,  # int [K]
    wrong: np.ndarray,  # bool [K]
    patch_size: int,
) -> Image.Image:
    """Kept tokens in colour, the rest dimmed; misplaced ones outlined, arrows to where they were put."""
    scale = magnified(view)
    panel = Image.fromarray(_dimmed(view, src, patch_size))
    panel = panel.resize((panel.width * scale,) * 2, Image.Resampling.NEAREST)
    grid, cell = len(view) // patch_size, patch_size * scale
    moves = [(_box(s, grid, cell), _box(p, grid, cell)) for s, p, w in zip(src, pos, wrong) if w and p >= 0]

    def overlay(draw: ImageDraw.ImageDraw, zoom: int) -> None:
        width = max(2, cell // 14) * zoom
        for _, there in moves:
            _dashed(draw, there, width, zoom)
        for here, _ in moves:
            _outline(draw, here, width, zoom)
        for here, there in moves:
            _arrow(draw, _centre(here, zoom), _centre(there, zoom), width)

    return _over(panel, overlay)


def draw_probabilities(
    view: np.ndarray,  # uint8 [S, S, C]
    src: np.ndarray,  # int [K]
    wrong: np.ndarray,  # bool [K]
    probability: np.ndarray,  # float [K]
    patch_size: int,
) -> Image.Image:
    """Each kept token as a cell in the colour of its probability of being misplaced, with the number in %."""
    scale = magnified(view)
    grid, cell = len(view) // patch_size, patch_size * scale
    panel = Image.fromarray(_dimmed(view, src[:0], patch_size))
    panel = panel.resize((panel.width * scale,) * 2, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=max(8, round(cell * 0.42)))
    colours = matplotlib.colormaps[COLOUR_MAP]
    for s, p in zip(src, probability):
        box = _box(s, grid, cell)
        if not np.isfinite(p):
            draw.rectangle(box, fill=DIM)
            continue
        red, green, blue = (round(255 * c) for c in colours(float(p))[:3])
        draw.rectangle(box, fill=(red, green, blue))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        ink = (255, 255, 255) if dark else (0, 0, 0)
        draw.text(_centre(box, 1), f"{100 * p:.0f}", font=font, fill=ink, anchor="mm")

    def overlay(draw: ImageDraw.ImageDraw, zoom: int) -> None:
        for s, w in zip(src, wrong):
            if w:
                _outline(draw, _box(s, grid, cell), max(2, cell // 14) * zoom, zoom)

    return _over(panel, overlay)


def colour_map_css(stops: int = 9) -> str:
    """The colour map as a CSS gradient from left (0) to right (1)."""
    colours = matplotlib.colormaps[COLOUR_MAP]
    listed = [matplotlib.colors.to_hex(colours(i / (stops - 1))) for i in range(stops)]
    return f"linear-gradient(to right, {', '.join(listed)})"


def _dimmed(view: np.ndarray, kept: np.ndarray, patch_size: int) -> np.ndarray:
    """The view with every patch but the kept ones grey and faint."""
    rgb = as_rgb(view)
    grid = len(view) // patch_size
    keep = np.zeros(grid * grid, dtype=bool)
    keep[kept] = True
    mask = np.kron(keep.reshape(grid, grid), np.ones((patch_size, patch_size), dtype=bool))
    faint = (1 - DIM_SHARE) * rgb.mean(axis=2, keepdims=True) + DIM_SHARE * np.array(DIM)
    return np.where(mask[..., None], rgb, faint.round().astype(np.uint8))


def _box(patch: int, grid: int, cell: int) -> tuple[int, int, int, int]:
    """First and last pixel of a patch: left, top, right, bottom."""
    row, column = divmod(int(patch), grid)
    return column * cell, row * cell, (column + 1) * cell - 1, (row + 1) * cell - 1


def _centre(box: tuple[int, int, int, int], zoom: int) -> tuple[float, float]:
    left, top, right, bottom = box
    return (left + right + 1) / 2 * zoom, (top + bottom + 1) / 2 * zoom


def _zoomed(box: tuple[int, int, int, int], zoom: int, inset: float = 0) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return (
        left * zoom + inset,
        top * zoom + inset,
        (right + 1) * zoom - 1 - inset,
        (bottom + 1) * zoom - 1 - inset,
    )


def _over(panel: Image.Image, overlay) -> Image.Image:
    """`overlay` drawn at a multiple of the size, shrunk and laid over the panel: smooth lines."""
    size = (panel.width * SUPERSAMPLING, panel.height * SUPERSAMPLING)
    layer = Image.new("RGBA", size, (*MARK, 0))
    overlay(ImageDraw.Draw(layer), SUPERSAMPLING)
    layer = layer.resize(panel.size, Image.Resampling.BOX)
    return Image.alpha_composite(panel.convert("RGBA"), layer).convert("RGB")


def _outline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], width: int, zoom: int) -> None:
    draw.rectangle(_zoomed(box, zoom), outline=CASING, width=width + 2 * zoom)
    draw.rectangle(_zoomed(box, zoom, zoom), outline=(*MARK, 255), width=width)


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], width: int, zoom: int) -> None:
    """Where a token was told it is: a dashed square."""
    left, top, right, bottom = _zoomed(box, zoom, width)
    steps = 9
    for i in range(0, steps, 2):
        a, b = i / steps, (i + 1) / steps
        x0, x1 = left + a * (right - left), left + b * (right - left)
        y0, y1 = top + a * (bottom - top), top + b * (bottom - top)
        for line in (
            (x0, top, x1, top),
            (x0, bottom, x1, bottom),
            (left, y0, left, y1),
            (right, y0, right, y1),
        ):
            draw.line(line, fill=(*MARK, 255), width=max(zoom, width * 4 // 5))


def _arrow(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], width: int) -> None:
    """A cased line with a head at `end`."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    length = 5.5 * width
    neck = (end[0] - 0.8 * length * math.cos(angle), end[1] - 0.8 * length * math.sin(angle))
    wings = [
        (end[0] - length * math.cos(angle + turn), end[1] - length * math.sin(angle + turn)) for turn in (-0.42, 0.42)
    ]
    casing = max(2, width // 2)
    draw.line((*start, *neck), fill=CASING, width=width + 2 * casing)
    draw.line((*start, *neck), fill=(*MARK, 255), width=width)
    draw.polygon((end, *wings), fill=(*MARK, 255), outline=CASING, width=casing)
    draw.circle(start, 1.1 * width, fill=(*MARK, 255))
