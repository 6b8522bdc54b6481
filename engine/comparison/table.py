"""The table of a comparison, for the terminal and for the page."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

ALIKE = 0.01  # how far recipes' training times may lie apart
WIDTH_IN_FILES = 150
HEADINGS = ("recipe", "seconds", "images", "images/s", "k-NN", "linear", "k-NN difference", "linear difference")


def cells(entry: dict) -> list[str]:
    """One summary entry as the texts below HEADINGS."""
    return [
        entry["recipe"],
        _number(entry.get("seconds"), ".1f"),
        _number(entry.get("images"), ",.0f"),
        _number(entry.get("images_per_s"), ",.0f"),
        *(_accuracy(entry, key) for key in ("knn", "linear")),
        *(_difference(entry.get(f"{key}_difference")) for key in ("knn", "linear")),
    ]


def print_summary(result: Path) -> None:
    """What comparison.json says."""
    summary = json.loads(result.read_bytes())["summary"]
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for entry in summary:
        table.add_row(*cells(entry))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_IN_FILES
    console.print(table)
    for line in (caption(summary), unequal(summary)):
        if line:
            console.print(line, markup=False, soft_wrap=True)


def unequal(summary: list[dict]) -> str:
    """A warning where steps were too long for equal times; "" where the recipes' seconds are within 1 %."""
    seconds = [entry["seconds"] for entry in summary if "seconds" in entry]
    apart = max(seconds) / min(seconds) - 1
    return f"training times differ by {apart:.1%}: steps are long for this budget" if apart > ALIKE else ""


def caption(summary: list[dict]) -> str:
    """How to read the figures."""
    seeds = max(entry["seeds"] for entry in summary)
    spread = f"± standard deviation over {seeds} seeds; " if seeds > 1 else ""
    return f"differences to {summary[0]['recipe']}, points, {spread}in brackets the 95 % interval over test images"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _accuracy(entry: dict, key: str) -> str:
    sd = entry.get(f"{key}_sd")
    return f"{100 * entry[key]:.1f} %" + ("" if sd is None else f" ± {100 * sd:.1f}")


def _difference(found: dict | None) -> str:
    if found is None:
        return ""
    spread = "" if found["sd"] is None else f" ± {100 * found['sd']:.1f}"
    return f"{100 * found['mean']:+.1f}{spread} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
