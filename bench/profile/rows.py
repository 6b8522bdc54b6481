"""What a profile says of each op: per shape, and summed per op and direction."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import torch

from ..roofline import floor_ms
from .record import Site, Spans
from .replay import Replayed


@dataclass(frozen=True)
class Row:
    """One op, one direction. Times in ms and work are of all its calls in a step; rates are those in the step."""

    op: str
    impl: str
    direction: str  # "forward" or "backward"
    shape: str
    dtype: str
    calls: int
    ms: float  # inside the step
    share: float  # of the step
    replayed_ms: float  # the same calls alone, taking turns with the reference
    reference_ms: float | None
    ratio: float | None  # reference / ours
    bytes_moved: int  # the least that there is to move
    operations: int
    floor_ms: float
    why_not: str = ""  # why there is no reference_ms

    @property
    def gb_s(self) -> float:
        return self.bytes_moved / self.ms * 1e-6 if self.ms else 0.0

    @property
    def tflop_s(self) -> float:
        return self.operations / self.ms * 1e-9 if self.ms else 0.0

    @property
    def floor_share(self) -> float:
        return self.floor_ms / self.ms if self.ms else 0.0

    def plain(self) -> dict:
        return {**vars(self), "gb_s": self.gb_s, "tflop_s": self.tflop_s, "floor_share": self.floor_share}


def rows_of(
    site: Site, spans: Spans, replayed: dict[str, Replayed], step_ms: float, device: torch.device
) -> Iterable[Row]:
    dtype = dtype_of(site)
    for direction, one in replayed.items():
        ms = getattr(spans, direction)
        floor = floor_ms(one.cost.bytes_moved, one.cost.operations, getattr(torch, dtype), device)
        yield Row(
            op=site.op,
            impl=site.impl,
            direction=direction,
            shape=shape_of(site),
            dtype=dtype,
            calls=spans.calls,
            ms=ms,
            share=ms / step_ms,
            replayed_ms=spans.calls * one.ms,
            reference_ms=None if one.against_ms is None else spans.calls * one.against_ms,
            ratio=one.ratio,
            bytes_moved=spans.calls * one.cost.bytes_moved,
            operations=spans.calls * one.cost.operations,
            floor_ms=spans.calls * floor,
            why_not=one.why_not,
        )


def by_op(rows: list[Row]) -> list[Row]:
    """The rows of one op and direction as one, the longest first; its ratio is that of the sums."""
    key = lambda row: (row.op, row.direction, row.impl)
    merged = [_merge(list(group)) for _, group in groupby(sorted(rows, key=key), key)]
    return sorted(merged, key=lambda row: -row.ms)


def _merge(rows: list[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    names = ("calls", "ms", "share", "replayed_ms", "bytes_moved", "operations", "floor_ms")
    sums = {name: sum(getattr(row, name) for row in rows) for name in names}
    known = all(row.reference_ms is not None for row in rows)
    reference = sum(row.reference_ms for row in rows) if known else None
    return dataclasses.replace(
        rows[0],
        shape=f"{len(rows)} shapes",
        dtype=" ".join(sorted({row.dtype for row in rows})),
        reference_ms=reference,
        ratio=reference / sums["replayed_ms"] if known else None,
        why_not=next((row.why_not for row in rows if row.why_not), ""),
        **sums,
    )


def dtype_of(site: Site) -> str:
    """Of the computation: that of the first floating tensor, or of the first output."""
    dtypes = [text.split()[0] for text in (*site.inputs, *site.outputs)]
    return next((dtype for dtype in dtypes if "float" in dtype), dtypes[0])


def shape_of(site: Site) -> str:
    """The first two inputs and the first output, or how much there is where an op takes lists."""
    shapes = [text.split(" ", 1)[1].rstrip("*").replace(", ", ",") for text in site.inputs]
    if not site.outputs:
        return f"{len(shapes)} tensors"
    out = site.outputs[0].split(" ", 1)[1].rstrip("*").replace(", ", ",")
    return " ".join(shapes[:2]) + " -> " + out
