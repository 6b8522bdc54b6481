"""Accuracy on the way of every recipe, against seconds of training and against images."""

from typing import NamedTuple

import numpy as np

from ..report.figure import DARK, LIGHT, Drawing, Theme, figure_uri, new_axes

AXES = (("seconds", "seconds of training"), ("images", "images"))


class Curve(NamedTuple):
    """metrics: the rows of metrics.jsonl of each seed."""

    name: str
    metrics: list[list[dict]]


def draw_curves(curves: list[Curve]) -> list[Drawing]:
    """Two drawings; none where no run has been measured on its way."""
    points = [point for curve in curves for point in on_the_way(curve, "seconds")]
    if not points:
        return []
    return [_drawing(curves, key, label) for key, label in AXES]


def on_the_way(curve: Curve, key: str) -> list[tuple[float, float, float, float]]:
    """(mean of `key`, mean k-NN, lowest, highest) over the seeds at each evaluation that all of them have had."""
    series = [{row[key]: row["knn"] for row in rows if row.get("knn") is not None} for rows in curve.metrics]
    series = [points.items() for points in series if points]
    found = []
    for at_once in zip(*series):
        where, knn = np.array(at_once, dtype=np.float64).T
        found.append((where.mean(), knn.mean(), knn.min(), knn.max()))
    return found


def _drawing(curves: list[Curve], key: str, label: str) -> Drawing:
    light, dark = (_draw(curves, key, label, theme) for theme in (LIGHT, DARK))
    ends = [f"{c.name} {100 * points[-1][1]:.1f} %" for c in curves if (points := on_the_way(c, key))]
    return Drawing(f"k-NN against {label}", f"k-NN against {label}, at the end: {', '.join(ends)}.", light, dark)


def _draw(curves: list[Curve], key: str, label: str, theme: Theme) -> str:
    figure, axes = new_axes(theme)
    for number, curve in enumerate(curves):
        points = on_the_way(curve, key)
        if not points:
            continue
        where, mean, low, high = (np.array(column) for column in zip(*points))
        colour = theme.series[number % len(theme.series)]
        style = ("-", "--", ":", "-.")[number // len(theme.series) % 4]
        axes.plot(where, 100 * mean, style, color=colour, linewidth=1.6, marker="o", markersize=3.2, label=curve.name)
        axes.fill_between(where, 100 * low, 100 * high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel(label)
    axes.set_ylabel("k-NN top-1, %")
    axes.set_xlim(left=0)
    if len(curves) <= 2 * len(theme.series):
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, loc="best")
    return figure_uri(figure)
