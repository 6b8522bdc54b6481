"""Rows of a comparison as means over seeds, and the differences to the first recipe with their spread."""

import statistics

from ..evaluation import bootstrap_means, interval
from .scoring import MEASURES, Right

ROW_KEYS = ("recipe", "seed", "seconds", "images", "images_per_s", "num_test")


def summarise(rows: list[dict], names: list[str]) -> dict:
    """rows, without the bits of single images; summary: one entry per recipe, the baselines last.

    names: the recipes in order; differences are to the first of them, seed by seed.
    """
    order = [*names, *dict.fromkeys(row["recipe"] for row in rows if row["recipe"] not in names)]
    by_name = {name: [row for row in rows if row["recipe"] == name] for name in order}
    kept = [{k: v for k, v in row.items() if k != "right"} for row in rows]
    return {"rows": kept, "summary": [_summary(name, by_name[name], by_name[names[0]]) for name in order]}


def _summary(name: str, rows: list[dict], first: list[dict]) -> dict:
    found: dict = {"recipe": name, "seeds": len(rows)}
    for key in ("seconds", "images", "images_per_s", *MEASURES):
        values = [row[key] for row in rows if key in row]
        if values:
            found[key] = statistics.fmean(values)
            found[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    if rows and rows[0]["recipe"] != first[0]["recipe"]:
        for key in MEASURES:
            found[f"{key}_difference"] = _difference(key, rows, first)
    return found


def _difference(key: str, rows: list[dict], first: list[dict]) -> dict | None:
    """mean: over the seeds that both have; sd: over the same, None for one; low, high: 95 % over test images."""
    seeds = {row["seed"]: row for row in first}
    pairs = [(row, seeds[row["seed"]]) for row in rows if row["seed"] in seeds]
    if not pairs:
        return None
    differences = [ours[key] - theirs[key] for ours, theirs in pairs]
    per_image = sum(_bits(ours, key) - _bits(theirs, key) for ours, theirs in pairs) / len(pairs)
    low, high = interval(bootstrap_means(per_image))
    sd = statistics.stdev(differences) if len(differences) > 1 else None
    return {"mean": statistics.fmean(differences), "sd": sd, "low": low, "high": high, "seeds": len(differences)}


def _bits(row: dict, key: str):
    return Right.from_plain(row["right"], row["num_test"]).of[key].double()
