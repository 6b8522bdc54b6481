"""One plot of a run's metrics, drawn by matplotlib."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .figure import Theme, figure_uri, new_axes, style_axes

FEW_POINTS = 40
DASHES = ((4, 3), (1, 2))


class Panel(NamedTuple):
    """One plot. keys: what metrics.jsonl calls the lines; right: (key, unit, factor) of a second axis.

    factor multiplies the values; levels: (value, name) of reference lines.
    """

    title: str
    keys: tuple[str, ...]
    unit: str
    factor: float = 1.0
    levels: tuple[tuple[float, str], ...] = ()
    right: tuple[str, str, float] | None = None


def duration(seconds: float) -> str:
    """12 s, 4.5 min, 3.2 h"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def series(metrics: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one key."""
    points = [(line["step"], line[key]) for line in metrics if is_number(line.get(key))]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def draw_panel(panel: Panel, metrics: list[dict], theme: Theme) -> str:
    """The plot as a data: URI."""
    figure, axes = new_axes(theme, right=0.6 if panel.right else 0.15)
    for i, key in enumerate(panel.keys):
        _line(axes, metrics, key, panel.factor, theme.series[i % len(theme.series)])
    for (value, name), dash in zip(panel.levels, DASHES):
        axes.axhline(value, color=theme.ink, linewidth=1, linestyle=(0, dash), label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    if panel.keys == ("lr",):
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}".replace("e-0", "e-") if value else "0")
    if panel.right:
        _right_axis(axes, metrics, panel.right, theme)
    if len(panel.keys) > 1 or panel.levels:
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, loc="best")
    _step_axis(axes, metrics)
    _time_axis(axes, metrics, theme)
    return figure_uri(figure)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a fortieth of the run; the window shrinks at the ends."""
    reach = len(values) // 80
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _line(axes: Axes, metrics: list[dict], key: str, factor: float, colour: str) -> None:
    steps, values = series(metrics, key)
    values = values * factor
    if len(steps) == 0:
        return
    if len(steps) <= FEW_POINTS:
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3.2, label=key)
        return
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(steps, _smooth(values), color=colour, linewidth=1.7, label=key)


def _right_axis(axes: Axes, metrics: list[dict], right: tuple[str, str, float], theme: Theme) -> None:
    key, name, factor = right
    if len(series(metrics, key)[0]) == 0:
        return
    other = axes.twinx()
    _line(other, metrics, key, factor, theme.series[1])
    other.set_ylim(0, max(10, other.get_ylim()[1]))
    axes.set_ylim(bottom=0)
    other.set_ylabel(name)
    style_axes(other, theme)
    axes.yaxis.label.set_color(theme.series[0])
    other.yaxis.label.set_color(theme.series[1])


def _step_axis(axes: Axes, metrics: list[dict]) -> None:
    """The whole run in every plot, so that they can be read one below the other."""
    steps = [line["step"] for line in metrics]
    margin = 0.03 * max(1, max(steps) - min(steps))
    axes.set_xlim(min(steps) - margin, max(steps) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _time_axis(axes: Axes, metrics: list[dict], theme: Theme) -> None:
    """Elapsed time along the top, at the step where it was reached."""
    steps, seconds = series(metrics, "seconds")
    if len(steps) < 2:
        return
    order = np.argsort(steps)
    steps, seconds = steps[order], seconds[order]
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    ticks = np.linspace(steps[0], steps[-1], 4)
    top.set_xticks(ticks, [duration(np.interp(tick, steps, seconds)) for tick in ticks])
    style_axes(top, theme)
    top.spines["bottom"].set_visible(False)
