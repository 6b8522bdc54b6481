"""A profile as text: the step, every op, every shape."""

from .rows import Row, by_op

HEADS = (
    "op",
    "impl",
    "direction",
    "calls",
    "ms",
    "step",
    "alone",
    "reference",
    "ratio",
    "GB",
    "GFLOP",
    "GB/s",
    "TFLOP/s",
    "floor",
)


def text(profile: dict, rows: list[Row], against: str) -> str:
    """The whole profile.txt."""
    parts = [*headline(profile), "", *ops(profile, rows), "", "By shape:", *shapes(rows), "", *legend(against)]
    reasons = sorted({f"{row.op}: no {against}: {row.why_not}" for row in rows if row.why_not})
    return "\n".join([*parts, *reasons]) + "\n"


def headline(profile: dict) -> list[str]:
    """What was profiled, where, and how long a step takes."""
    step, where = profile["step"], profile["environment"]
    memory = f", {step['peak_memory'] / 1e9:.2f} GB at its peak"
    return [
        f"{profile['recipe']}, {profile['model']}, {profile['batch_size']} images, {profile['precision']}",
        f"{where['device']}, CPU threads: {profile['threads']}, {where['versions']} {where['commit']}",
        f"step {step['ms']:.4g} ms ({step['p20']:.4g}-{step['p80']:.4g}), {step['images_per_s']:.4g} images/s{memory}",
        f"matrix work {step['tflop_s']:.3g} TFLOP/s, {step['matmul_share']:.1%} of this device's square matrix product",
        f"while recorded {step['recorded_ms']:.4g} ms a step: the shares are of these",
    ]


def ops(profile: dict, rows: list[Row]) -> list[str]:
    """A line per op and direction, and what lies outside all of them."""
    merged, whole = by_op(rows), profile["step"]["recorded_ms"]
    inside = sum(row.ms for row in merged)
    lines = [_cells(row) for row in merged]
    lines.append(("all ops", "", "", "", f"{inside:.4g}", f"{inside / whole:.1%}"))
    lines.append(("between the ops", "", "", "", f"{whole - inside:.4g}", f"{1 - inside / whole:.1%}"))
    return aligned([HEADS, *lines])


def shapes(rows: list[Row]) -> list[str]:
    """A line per op, direction and shape, the longest first."""
    ordered = sorted(rows, key=lambda row: -row.ms)
    return aligned([(*HEADS, "dtype", "shape"), *((*_cells(row), row.dtype, row.shape) for row in ordered)])


def legend(against: str) -> list[str]:
    return [
        "ms, step: all calls in a step, and their share of it. alone, reference: the same calls replayed, ours and",
        f"{against} taking turns; ratio is {against} / ours. GB, GFLOP: the least to move, the matrix work. floor: the",
        "share of the time in the step that a copy, or a square matrix product, of this device would take for them.",
    ]


def _cells(row: Row) -> tuple[str, ...]:
    reference = "-" if row.reference_ms is None else f"{row.reference_ms:.4g}"
    ratio = "-" if row.ratio is None else "same" if row.replayed_ms == row.reference_ms else f"{row.ratio:.2f}x"
    work = (f"{row.operations * 1e-9:.3g}", f"{row.gb_s:.3g}", f"{row.tflop_s:.3g}") if row.operations else (
        "-", f"{row.gb_s:.3g}", "-")  # fmt: skip
    return (
        row.op,
        row.impl,
        row.direction,
        str(row.calls),
        f"{row.ms:.4g}",
        f"{row.share:.1%}",
        f"{row.replayed_ms:.4g}",
        reference,
        ratio,
        f"{row.bytes_moved * 1e-9:.3g}",
        *work,
        f"{row.floor_share:.0%}",
    )


def aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Columns of equal width, names to the left and numbers to the right."""
    count = max(map(len, lines))
    padded = [(*line, *[""] * (count - len(line))) for line in lines]
    widths = [max(map(len, column)) for column in zip(*padded, strict=True)]
    left = {0, 1, 2, len(HEADS), len(HEADS) + 1}
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in padded
    ]
