"""The curves of a run: each measure against the step, with the elapsed time along the top."""

from collections.abc import Iterator

from .figure import DARK, LIGHT, Drawing
from .plot import Panel, draw_panel, is_number, series

NOT_A_TERM = {"step", "epoch", "images", "seconds", "loss", "bce", "auroc", "lr", "grad_norm"} | {
    "images_per_s",
    "data_wait",
    "knn",
    "momentum",
    "progress",
}
Levels = tuple[tuple[str, float | None], ...]


def loss_terms(metrics: list[dict]) -> tuple[str, ...]:
    """Every key of the metrics that names a loss term, in order of appearance."""
    keys = dict.fromkeys(key for line in metrics for key, value in line.items() if is_number(value))
    return tuple(key for key in keys if key not in NOT_A_TERM)


def panels(metrics: list[dict], bce_chance: float | None, knn_levels: Levels) -> list[Panel]:
    """The plots in reading order; those without a value are left out when drawn."""
    terms = loss_terms(metrics)
    several = len(terms) > 1 or len(series(metrics, "bce")[0])
    chance = _levels(1, ("chance {:.4f}", bce_chance))
    return [
        Panel("Loss and its terms", ("loss", *(terms if several else ())), "loss"),
        Panel("BCE of the detection head", ("bce",), "nats", levels=chance),
        Panel("Detection AUROC", ("auroc",), "area under ROC", levels=((0.5, "chance 0.5"),)),
        Panel("k-NN top-1", ("knn",), "%", 100, levels=_levels(100, *knn_levels)),
        Panel("Images/s and data wait", ("images_per_s",), "images/s", right=("data_wait", "data wait %", 100)),
        Panel("Learning rate", ("lr",), "learning rate"),
        Panel("Gradient norm", ("grad_norm",), "norm before clipping"),
    ]


def draw_curves(metrics: list[dict], bce_chance: float | None, knn_levels: Levels) -> Iterator[Drawing]:
    """Every panel that has at least one finite value, in both themes."""
    for panel in panels(metrics, bce_chance, knn_levels):
        if any(len(series(metrics, key)[0]) for key in panel.keys):
            light, dark = (draw_panel(panel, metrics, theme) for theme in (LIGHT, DARK))
            yield Drawing(panel.title, _describe(panel, metrics), light, dark)


def _levels(factor: float, *named: tuple[str, float | None]) -> tuple[tuple[float, str], ...]:
    return tuple((value * factor, text.format(value * factor)) for text, value in named if value is not None)


def _describe(panel: Panel, metrics: list[dict]) -> str:
    """The alternative text: first and last value of each line."""
    lines = [(key, panel.factor) for key in panel.keys] + ([panel.right[::2]] if panel.right else [])
    values = [(key, series(metrics, key)[1] * factor) for key, factor in lines]
    parts = [f"{key} from {found[0]:.4g} to {found[-1]:.4g}" for key, found in values if len(found)]
    parts += [name for _, name in panel.levels]
    return f"{panel.title} against the step: {', '.join(parts)}."
