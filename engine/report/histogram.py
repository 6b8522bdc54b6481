"""The detection head's probabilities, for tokens in place and for misplaced ones."""

import numpy as np

from .contents import Pictures
from .figure import DARK, LIGHT, Drawing, Theme, figure_uri, new_axes

BINS = np.linspace(0, 1, 21)


def draw_histogram(pictures: Pictures) -> Drawing | None:
    """Shares of each kind of token per probability; None where the run has no detection head."""
    if pictures.probability is None or pictures.probability.size == 0:
        return None
    kinds = {
        "in place": pictures.probability[~pictures.wrong],
        "misplaced": pictures.probability[pictures.wrong],
    }
    kinds = {kind: values[np.isfinite(values)] for kind, values in kinds.items()}
    kinds = {kind: values for kind, values in kinds.items() if len(values)}
    if not kinds:
        return None
    said = [f"{kind}: {len(v):,} tokens, mean probability {v.mean():.2f}" for kind, v in kinds.items()]
    light, dark = (_draw(kinds, theme) for theme in (LIGHT, DARK))
    return Drawing(
        "Probability of being misplaced",
        f"Histogram of the head's probabilities; {'; '.join(said)}.",
        light,
        dark,
    )


def _draw(kinds: dict[str, np.ndarray], theme: Theme) -> str:
    figure, axes = new_axes(theme, width=11, height=2.9)
    colours = {"in place": theme.series[0], "misplaced": theme.series[1]}
    for kind, values in kinds.items():
        share = 100 * np.histogram(values, BINS)[0] / len(values)
        label = f"{kind} ({len(values):,})"
        axes.stairs(share, BINS, fill=True, color=colours[kind], alpha=0.28)
        axes.stairs(share, BINS, color=colours[kind], linewidth=1.6, label=label)
        axes.axvline(values.mean(), color=colours[kind], linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability the head gives to “misplaced” (dotted: mean)")
    axes.set_ylabel("% of such tokens")
    axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure_uri(figure)
