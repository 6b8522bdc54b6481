"""Rows of `misplace bench data`: ms are of an image."""

import importlib.metadata
from collections.abc import Iterator
from contextlib import suppress

import torch

from .. import environment
from ..results import Row
from .segments import Pace

PACKAGES = ("pillow", "torchvision", "nvidia-dali-cuda130")  # whose versions a row names too


def where_measured(device: torch.device) -> dict[str, str]:
    """As environment.describe, with the versions of those who decode."""
    where = environment.describe(device)
    return where | {"versions": " ".join([where["versions"], *_versions()])}


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name}={importlib.metadata.version(name)}"


def row(against: str, pace: Pace, **fields) -> Row:
    """fields: impl, mode, shape, threads, and all of where_measured."""
    noise = max(pace.itself.p80, 1 / pace.itself.p20)
    return Row(
        op="data",
        against=against,
        dtype="uint8",
        ms=pace.ours.p50,
        p20=pace.ours.p20,
        p80=pace.ours.p80,
        against_ms=pace.against.p50,
        against_p20=pace.against.p20,
        against_p80=pace.against.p80,
        ratio=pace.ratio,
        self_p20=pace.itself.p20,
        self_p80=pace.itself.p80,
        counts=max(pace.ratio, 1 / pace.ratio) > noise,
        error=0.0,
        gb_s=0.0,
        tflop_s=0.0,
        floor_share=0.0,
        **fields,
    )


def line(row: Row) -> str:
    """A row for the eye."""
    noise, verdict = max(row.self_p80, 1 / row.self_p20) - 1, "" if row.counts else ", within noise"
    return (
        f"{row.op} {row.impl} {row.mode} {row.shape}: {1e3 / row.ms:.0f} images/s, {row.against} "
        f"{1e3 / row.against_ms:.0f} images/s, {row.ratio:.2f}x (itself ±{noise:.0%}{verdict})"
    )
