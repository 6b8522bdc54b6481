"""Accuracy on the way of every recipe, against seconds of training and against images."""

from typing import NamedTuple

import numpy as np

from ..report.figure import DARK, LIGHT, Drawing, Theme, figure_uri, new_axes

FEW, LEGEND_COLUMNS = 6, 4  # more curves than that: the legend below
LEGEND_HEAD, LEGEND_LINE = 0.3, 0.2  # inches
STYLES = ("-", "--", ":", "-.")
AXES = (("seconds", "seconds of training"), ("images", "images"))


class Curve(NamedTuple):
    """metrics: the rows of metrics.jsonl of each seed. place: in a grid, (row, column) choose colour and line."""

    name: str
    metrics: list[list[dict]]
    place: tuple[int, int] | None = None


def draw_curves(curves: list[Curve], title: str = "") -> list[Drawing]:
    """Two drawings; none where no run has been measured on its way. title: of the legend."""
    points = [point for curve in curves for point in on_the_way(curve, "seconds")]
    if not points:
        return []
    return [_drawing(curves, key, label, title) for key, label in AXES]


def on_the_way(curve: Curve, key: str) -> list[tuple[float, float, float, float]]:
    """(mean of `key`, mean k-NN, lowest, highest) over the seeds at each evaluation that all of them have had."""
    series = [{row[key]: row["knn"] for row in rows if row.get("knn") is not None} for rows in curve.metrics]
    series = [points.items() for points in series if points]
    found = []
    for at_once in zip(*series):
        where, knn = np.array(at_once, dtype=np.float64).T
        found.append((where.mean(), knn.mean(), knn.min(), knn.max()))
    return found


def _drawing(curves: list[Curve], key: str, label: str, title: str) -> Drawing:
    light, dark = (_draw(curves, key, label, title, theme) for theme in (LIGHT, DARK))
    ends = [f"{c.name} {100 * points[-1][1]:.1f} %" for c in curves if (points := on_the_way(c, key))]
    return Drawing(f"k-NN against {label}", f"k-NN against {label}, at the end: {', '.join(ends)}.", light, dark)


def _draw(curves: list[Curve], key: str, label: str, title: str, theme: Theme) -> str:
    lines = -(-len(curves) // LEGEND_COLUMNS)
    below = LEGEND_HEAD + lines * LEGEND_LINE if len(curves) > FEW else 0.0
    figure, axes = new_axes(theme, below=below)
    for number, curve in enumerate(curves):
        points = on_the_way(curve, key)
        if not points:
            continue
        where, mean, low, high = (np.array(column) for column in zip(*points))
        row, column = curve.place or (number, number // len(theme.series))
        colour, style = theme.series[row % len(theme.series)], STYLES[column % len(STYLES)]
        axes.plot(where, 100 * mean, style, color=colour, linewidth=1.6, marker="o", markersize=3.2, label=curve.name)
        axes.fill_between(where, 100 * low, 100 * high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel(label)
    axes.set_ylabel("k-NN top-1, %")
    axes.set_xlim(left=0)
    place = dict(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=LEGEND_COLUMNS) if below else dict(loc="best")
    legend = axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, title=title, title_fontsize=8, **place)
    legend.get_title().set_color(theme.ink)
    return figure_uri(figure)
