"""A grid of two options as a heat map, with the figure in every field."""

import numpy as np

from ..report.figure import DARK, LIGHT, Drawing, Theme, figure_uri, new_axes
from .plan import Plan, Variant

NAMES = {"knn": "k-NN", "linear": "Linear"}


def axis_names(plan: Plan) -> list[str]:
    """Of the options that a grid varies, without their section; none without a grid."""
    return [name.rpartition(".")[2] for name, _ in plan.variants[0].axes]


def axis_values(plan: Plan, axis: int) -> list[str]:
    """In the order they were given."""
    return list(dict.fromkeys(variant.axes[axis][1] for variant in plan.variants))


def place_of(plan: Plan, variant: Variant) -> tuple[int, int]:
    """(row, column) in the grid."""
    row, column = (axis_values(plan, axis).index(variant.axes[axis][1]) for axis in (0, 1))
    return row, column


def grid_of(plan: Plan, summary: list[dict], key: str) -> tuple[list[str], list[str], np.ndarray]:
    """The values of the first and of the second axis, and the accuracies [rows, columns]; NaN where none is known."""
    rows, columns = axis_values(plan, 0), axis_values(plan, 1)
    found = {entry["recipe"]: entry.get(key, np.nan) for entry in summary}
    grid = np.full((len(rows), len(columns)), np.nan)
    for variant in plan.variants:
        grid[place_of(plan, variant)] = found.get(variant.name, np.nan)
    return rows, columns, grid


def draw_heat_map(plan: Plan, summary: list[dict], key: str) -> Drawing:
    """The accuracies of a grid in both themes."""
    rows, columns, grid = grid_of(plan, summary, key)
    first, second = axis_names(plan)
    light, dark = (_draw(rows, columns, 100 * grid, first, second, theme) for theme in (LIGHT, DARK))
    best = np.unravel_index(np.nanargmax(grid), grid.shape)
    title = f"{NAMES[key]} by {first} and {second}"
    said = f"{title}; the best, {100 * grid[best]:.1f} %, at {rows[best[0]]} and {columns[best[1]]}."
    return Drawing(title, said, light, dark)


def _draw(rows: list[str], columns: list[str], grid: np.ndarray, first: str, second: str, theme: Theme) -> str:
    figure, axes = new_axes(theme, height=0.9 + 0.5 * len(rows))
    axes.grid(False)
    shown = axes.imshow(grid, cmap="viridis", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (row, column), value in np.ndenumerate(grid):
        colour = "#ffffff" if shown.norm(value) < shown.norm(middle) else "#1b1f24"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    return figure_uri(figure)
