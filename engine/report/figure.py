"""Matplotlib figures and Pillow images as data: URIs, in a light and a dark theme."""

import base64
import io
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DPI = 150
LOSSLESS_PIXELS = 128 * 128


class Theme(NamedTuple):
    """paper, ink, faint: background, text, grid. series: lines, told apart by the colour-blind too."""

    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]


# `paper` is the colour of a card in page.css; blue, vermilion, green, purple, ochre.
LIGHT = Theme("#ffffff", "#24292f", "#d8dee4", ("#2f6bd8", "#d4521a", "#12836c", "#8250df", "#9a6700"))
DARK = Theme("#171b21", "#dfe5ec", "#343b45", ("#7fa8ff", "#ff8c5a", "#4fd0b3", "#c49bff", "#e0b341"))


class Drawing(NamedTuple):
    """One picture in both themes, with the sentence that says what it shows."""

    title: str
    alt: str
    light: str  # data: URI
    dark: str  # data: URI


def new_axes(
    theme: Theme, width: float = 5.4, height: float = 2.8, right: float = 0.15, below: float = 0.0
) -> tuple[Figure, Axes]:
    """A figure of width x height inches in the theme's colours, its axes, `right` inches beside them.

    below: inches more under the axes, for a legend.
    """
    height += below
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    left, bottom, top = 0.6, 0.42 + below, 0.22
    inside = (width - left - right) / width, (height - bottom - top) / height
    axes = figure.add_axes((left / width, bottom / height, *inside))
    axes.set_facecolor(theme.paper)
    axes.grid(True, color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    style_axes(axes, theme)
    return figure, axes


def style_axes(axes: Axes, theme: Theme) -> None:
    axes.tick_params(colors=theme.ink, labelsize=8, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
        label.set_size(8)


def figure_uri(figure: Figure) -> str:
    figure.canvas.draw()
    return image_uri(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"), colours=64)


def image_uri(image: Image.Image, colours: int) -> str:
    """A PNG as a data: URI; an image of more pixels than an icon gets a palette of at most `colours`."""
    if image.width * image.height > LOSSLESS_PIXELS:
        image = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
