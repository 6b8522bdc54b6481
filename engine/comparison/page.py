"""report.html of a comparison: the table, accuracy against seconds and images, a heat map of a grid."""

import re
from html import escape

from ..clock import format_duration
from ..metrics_log import read_metrics
from ..report.document import document
from ..report.markup import flatten, folded, picture, section, table
from .curves import Curve, draw_curves
from .folder import ComparisonFolder
from .heat_map import axis_names, draw_heat_map, place_of
from .plan import Plan, Variant
from .table import HEADINGS, caption, cells, unequal


def write_page(folder: ComparisonFolder, plan: Plan, result: dict) -> None:
    """The page of what comparison.json holds and of the runs' metrics."""
    folder.write(folder.report, render(folder, plan, result).encode("utf-8"))


def render(folder: ComparisonFolder, plan: Plan, result: dict) -> str:
    """The page as text."""
    config = plan.variants[0].config
    runs = len(plan.variants) * plan.seeds
    facts = [
        ("model", f"{config.model.name}, {config.model.image_size} / {config.model.patch_size}"),
        ("training time of each run", format_duration(plan.budget)),
        ("runs", str(runs)),
        ("slices", f"{plan.rounds} of {plan.slice_seconds:g} s"),
        ("device", config.run.device),
    ]
    sections = [
        _warning(unequal(result["summary"])),
        section("At equal training time", caption(result["summary"]), summary_table(result["summary"])),
        _grid(plan, result),
        _curves(folder, plan),
        section("Every run", "", rows_table(result["rows"])),
        folded("Configuration of the first recipe", table(flatten(result["plan"]["variants"][0]["config"]))),
    ]
    return document(
        kind="misplace comparison",
        title=f"Equal training time on {config.data.source}",
        heading=f"{escape(_named(plan))} <span>on {escape(config.data.source)}</span>",
        facts=facts,
        sections=sections,
        footer=(
            "Runs trained by turns, a slice each, the order rotating from round to round; data loading counts as "
            "training, start-up, saving and evaluation do not. Everything shown is in this file."
        ),
    )


def _named(plan: Plan) -> str:
    names = [variant.name for variant in plan.variants]
    return " / ".join(names) if len(names) <= 4 else f"{names[0].partition(':')[0]}, {len(names)} settings"


def _warning(said: str) -> str:
    return f'<section class="card warning"><p>{escape(said)}</p></section>' if said else ""


def summary_table(summary: list[dict]) -> str:
    """The summary with a heading."""
    return _table(HEADINGS, [cells(entry) for entry in summary])


def rows_table(rows: list[dict]) -> str:
    """One line per run, its intervals over test images."""
    lines = []
    for row in rows:
        length = [f"{row['seconds']:.2f}", f"{row['images']:,}"] if "seconds" in row else ["", ""]
        accuracies = [
            f"{100 * row[key]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            for key in ("knn", "linear")
            for low, high in [row[f"{key}_interval"]]
        ]
        lines.append([row["recipe"], str(row["seed"]), *length, *accuracies])
    return _table(("recipe", "seed", "seconds", "images", "k-NN", "linear"), lines)


def _table(headings: tuple[str, ...], lines: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_breakable(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="card wide"><table><tr>{head}</tr>{body}</table></div>'


def _breakable(cell: str) -> str:
    """A recipe's changes may stand on lines of their own."""
    return re.sub("([:,])(?=[a-z])", r"\1<wbr>", escape(cell))


def _curves(folder: ComparisonFolder, plan: Plan) -> str:
    drawn = draw_curves([_curve(folder, plan, v) for v in plan.variants], " / ".join(axis_names(plan)))
    figures = "".join(f'<figure class="card"><h3>{escape(d.title)}</h3>{picture(d)}</figure>' for d in drawn)
    said = (
        "k-NN on the way, of 2,000 training and 1,000 test images; a line is the mean over seeds, a band their range."
    )
    return section("On the way", said, f'<div class="curves">{figures}</div>') if drawn else ""


def _curve(folder: ComparisonFolder, plan: Plan, variant: Variant) -> Curve:
    """On a grid named by its values, and drawn by its place there."""
    metrics = _metrics(folder, variant, plan.seeds)
    if len(variant.axes) != 2:
        return Curve(variant.name, metrics)
    return Curve(" / ".join(value for _, value in variant.axes), metrics, place_of(plan, variant))


def _metrics(folder: ComparisonFolder, variant: Variant, seeds: int) -> list[list[dict]]:
    """Of each seed."""
    return [read_metrics(folder.run(variant.folder, seed) / "metrics.jsonl") for seed in range(seeds)]


def _grid(plan: Plan, result: dict) -> str:
    if len(plan.variants[0].axes) != 2:
        return ""
    drawn = [draw_heat_map(plan, result["summary"], key) for key in ("knn", "linear")]
    figures = "".join(f'<figure class="card"><h3>{escape(d.title)}</h3>{picture(d)}</figure>' for d in drawn)
    return section("The grid", "Accuracy, %, at equal training time.", f'<div class="curves">{figures}</div>')
