"""report.html: one file, no script, no other resource."""

import math
from html import escape
from pathlib import Path

from misplace.engine.durable import replace_file

from .contents import RunContents, read_run
from .curves import draw_curves
from .document import document
from .histogram import draw_histogram
from .markup import flatten, folded, picture, section, table
from .nearest_neighbours import knn_section, share
from .plot import duration
from .samples import samples_html, sparse


def write_report(run: Path | str) -> Path:
    """Write RUN/report.html from what the run folder holds, and return its path.

    Reads config.json, environment.json, metrics.jsonl, summary.json, quarantine.jsonl and pictures.npz; what
    is missing is left out, what cannot be read is named on the page. Of summary.json it shows `knn`
    {"pixels", "random", "trained"} and `chance` (shares in [0, 1]), `knn_k`, `images` and `seconds`.
    Raises UserError where `run` is no folder.
    """
    contents = read_run(Path(run))
    path = contents.path / "report.html"
    replace_file(path, render(contents).encode("utf-8"))
    return path


def render(run: RunContents) -> str:
    """The page as text."""
    recipe = _at(run.config, "recipe") or run.path.resolve().name
    source = _at(run.config, "data", "source")
    on = f" <span>on {escape(source)}</span>" if source else ""
    sections = [
        _unread(run),
        knn_section(run.summary),
        _curves(run),
        _histogram(run),
        _pictures(run),
        _details(run),
    ]
    return document(
        kind="misplace run report",
        title=f"{recipe} on {source}" if source else recipe,
        heading=escape(recipe) + on,
        facts=_facts(run),
        sections=sections,
        footer=f"Written by misplace from {run.path.resolve().name}/. Everything shown is in this file.",
    )


def bce_chance(config: dict) -> float | None:
    """The cross entropy, nats, of a head that only knows theta; None without DILEMMA."""
    theta = _at(config, "pretext", "wrong_rate")
    if theta is None or not 0 < float(theta) < 1:
        return None
    return -sum(p * math.log(p) for p in (float(theta), 1 - float(theta)))


def _at(tree: dict, *keys: str) -> str | None:
    """A leaf of nested dicts as text; None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return None if tree is None or isinstance(tree, dict | list) else str(tree)


def _number(run: RunContents, key: str) -> float | None:
    """A total from the summary, else the last value in the metrics."""
    for line in (run.summary, *reversed(run.metrics)):
        value = line.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            return value
    return None


def _facts(run: RunContents) -> list[tuple[str, str]]:
    images, seconds, steps = (_number(run, key) for key in ("images", "seconds", "step"))
    model = _at(run.config, "model", "name")
    size, patch = _at(run.config, "model", "image_size"), _at(run.config, "model", "patch_size")
    pairs = [
        ("model", f"{model}, {size} / {patch}" if model and size and patch else model),
        ("steps", f"{steps:,.0f}" if steps is not None else None),
        ("images", f"{images:,.0f}" if images is not None else None),
        ("training time", duration(seconds) if seconds is not None else None),
        ("images/s", f"{images / seconds:,.0f}" if images and seconds else None),
        ("device", _at(run.environment, "device_name") or _at(run.environment, "device")),
        ("seed", _at(run.config, "run", "seed")),
    ]
    return [(name, value) for name, value in pairs if value]


def _unread(run: RunContents) -> str:
    if not run.unread:
        return ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in run.unread)
    return f'<section class="card warning"><h2>Not everything could be read</h2>{lines}</section>'


def _curves(run: RunContents) -> str:
    before = run.summary.get("knn")
    before = before.get("random") if isinstance(before, dict) else None
    levels = (
        ("random encoder {:.1f} %", share(before)),
        ("chance {:.3g} %", share(run.summary.get("chance"))),
    )
    drawn = [
        f'<figure class="card"><h3>{escape(drawing.title)}</h3>{picture(drawing)}</figure>'
        for drawing in draw_curves(run.metrics, bce_chance(run.config), levels)
    ]
    if not drawn:
        return section("Training", "No metrics were written.", "")
    return section(
        "Training",
        "Against the step; the elapsed training time runs along the top. Bold: running mean.",
        f'<div class="curves">{"".join(drawn)}</div>',
    )


def _histogram(run: RunContents) -> str:
    drawing = draw_histogram(run.pictures) if run.pictures else None
    if drawing is None:
        return ""
    return section(
        "Can it tell which tokens are misplaced?",
        "Every token of the pictures below: how probable the detection head finds it that the token was "
        "given a wrong position. The further the two hills lie apart, the better.",
        f'<figure class="card">{picture(drawing)}</figure>',
    )


def _pictures(run: RunContents) -> str:
    if run.pictures is None or len(run.pictures.views) == 0:
        return ""
    said = (
        "A few samples as the trained student sees them."
        if sparse(run.pictures)
        else "A few samples as the student sees them: every token, each at its place."
    )
    return section("What the network saw", said, samples_html(run.pictures))


def _details(run: RunContents) -> str:
    implementations = run.environment.get("implementations")
    environment = {k: v for k, v in run.environment.items() if k != "implementations"}
    parts = []
    if implementations:
        parts.append(folded("Implementation of each op", table(flatten(implementations)), opened=True))
    if run.config:
        parts.append(folded("Configuration", table(flatten(run.config))))
    if environment:
        parts.append(folded("Environment", table(flatten(environment))))
    return section("Details", _quarantine(run.quarantined), "".join(parts))


def _quarantine(count: int) -> str:
    if count == 0:
        return "Every image could be read."
    counted = "1 image that could not be read was" if count == 1 else f"{count:,} images that could not be read were"
    return f"{counted} replaced; quarantine.jsonl has the names."
