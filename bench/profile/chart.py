"""Every op of a step as a bar, its reference behind it and its floor as a tick."""

from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from misplace.engine.report.figure import LIGHT

from .rows import Row, by_op

BAR, BEHIND = 0.42, 0.84  # heights in rows
INCHES_PER_ROW, WIDTH = 0.3, 8.0
MARGINS = dict(left=1.9, right=1.0, top=0.75, bottom=0.5)  # inches


def draw(path: Path, title: str, rows: list[Row], between_ms: float, against: str) -> None:
    """A self-contained SVG (letters as outlines): ms in a step, the longest op on top."""
    merged = by_op(rows)
    count = len(merged) + 1
    height = MARGINS["top"] + MARGINS["bottom"] + INCHES_PER_ROW * count
    figure = Figure(figsize=(WIDTH, height), facecolor=LIGHT.paper)
    FigureCanvasSVG(figure)
    axes = figure.add_axes(_box(height), facecolor=LIGHT.paper)
    ours, reference, floor = LIGHT.series[0], LIGHT.faint, LIGHT.series[1]
    at = range(len(merged))
    # the reference's time in the step: what it takes here, for as long as ours really took
    behind = [row.ms * row.ratio if row.ratio else 0.0 for row in merged]
    axes.barh(at, behind, BEHIND, color=reference, label=against)
    axes.barh(at, [row.ms for row in merged], BAR, color=ours, label="ours, in the step")
    axes.barh([len(merged)], [between_ms], BAR, color=LIGHT.series[3], label="between the ops")
    axes.vlines([row.floor_ms for row in merged], [y - BAR / 2 for y in at], [y + BAR / 2 for y in at], color=floor,
                linewidth=1.6, label="floor")  # fmt: skip
    longest = max([*behind, *(row.ms for row in merged), between_ms])
    for y, row in zip(at, merged, strict=True):
        note = f"{row.share:.0%}" + (f", {row.ratio:.1f}x" if row.ratio else "")
        axes.annotate(note, (max(row.ms, behind[y]) + longest / 100, y), va="center", fontsize=8, color=LIGHT.ink)
    axes.set_yticks([*at, len(merged)], [*(f"{row.op} {row.direction}" for row in merged), "between the ops"])
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.12)
    axes.set_xlabel("ms per step", color=LIGHT.ink, fontsize=8)
    axes.tick_params(colors=LIGHT.ink, labelsize=8, length=0)
    axes.grid(True, axis="x", color=LIGHT.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.text(0.01, 1 - 0.12 / height, title, color=LIGHT.ink, fontsize=9, va="top")
    axes.legend(loc="lower right", frameon=False, fontsize=8, labelcolor=LIGHT.ink)
    figure.savefig(path, format="svg", facecolor=LIGHT.paper, metadata={"Date": None})


def _box(height: float) -> tuple[float, float, float, float]:
    inside = WIDTH - MARGINS["left"] - MARGINS["right"], height - MARGINS["bottom"] - MARGINS["top"]
    return MARGINS["left"] / WIDTH, MARGINS["bottom"] / height, inside[0] / WIDTH, inside[1] / height
