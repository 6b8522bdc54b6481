"""`python -m misplace.bench.attention_choices`: measures which implementation of attention is the fastest here.

Writes kernels/attention/choices.csv, which impl="auto" reads: what was measured anew, all other rows as they are. Every
implementation that is right (the gate of bench/cases/attention.py) takes its turn, interleaved. The one that would be
taken without a table stays unless another beats it by more than it differs from itself.
"""

import csv
import itertools
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import arg

from misplace.engine.commands.parsing import parse
from misplace.kernels import Impl
from misplace.kernels.attention import choice
from misplace.kernels.attention.choice import Choice

from . import environment, timing
from .cases.attention import checked_thunk
from .measure import RedGateError

# a row stands for all lengths up to its own and above the one before
TOKENS = {"cpu": (50, 99, 197), "cuda": (37, 50, 64, 99, 128, 197, 256)}
HEAD_DIMS = (32, 64)
ROWS = {"cpu": (96, 768), "cuda": (96, 768, 6144)}  # images x heads
HEADS = 6
DTYPES = {"cpu": ("bfloat16", "float32"), "cuda": ("bfloat16", "float16")}
AGAIN = "again"
TINY = dict(tokens=(5, 9), rows=(12,), head_dims=(32,))


@dataclass(frozen=True)
class Options:
    """Measure attention's implementations and write the table of choices."""

    rounds: int = 15
    """Times that they take turns."""
    threads: int | None = None
    """CPU threads; none: as many as torch takes."""
    dtype: str | None = None
    """Only this dtype, such as bfloat16."""
    mode: str | None = None
    """Only forward, or forward+backward."""
    tiny: bool = False
    """Tiny shapes: a rehearsal, whose choices say nothing."""
    out: Annotated[Path, arg(metavar="FILE")] = choice.PATH
    """The table to write; rows that are not measured again are kept."""


def main(argv: list[str]) -> int:
    """0 when every shape was measured, 1 when an implementation was wrong."""
    options = parse(Options, argv, prog="attention_choices")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with timing.pinned_threads(options.threads) as threads:
        where = environment.describe(device)
        print(f"{where['device']}, {choice.kind_of(device)}, {threads} threads, {where['versions']} {where['commit']}")
        complete = True
        for shape in _shapes(device, options):
            right, row = _measure(*shape, device, options.rounds, threads)
            complete &= right
            if row:
                write(options.out, row)
    return 0 if complete else 1


def _shapes(device: torch.device, options: Options):
    """dtype, mode, head dim, tokens, images x heads, and the least of those that the row stands for."""
    tokens, rows, head_dims = TOKENS[device.type], ROWS[device.type], HEAD_DIMS
    if options.tiny:
        tokens, rows, head_dims = TINY["tokens"], TINY["rows"], TINY["head_dims"]
    for dtype, mode in itertools.product(DTYPES[device.type], ("forward", "forward+backward")):
        if options.dtype in (None, dtype) and options.mode in (None, mode):
            for head_dim, length, count in itertools.product(head_dims, tokens, rows):
                yield dtype, mode, head_dim, length, count, 0 if count == min(rows) else count


def _measure(
    dtype: str, mode: str, head_dim: int, tokens: int, count: int, at_least: int,
    device: torch.device, rounds: int, threads: int,
) -> tuple[bool, Choice | None]:  # fmt: skip
    """Whether all were right, and the row of the fastest; none where only one runs here."""
    shape, thunks, right = (count // HEADS, tokens, HEADS, head_dim), {}, True
    for impl in choice.candidates(device, getattr(torch, dtype), tokens, head_dim):
        if impl is not Impl.REFERENCE:
            try:
                thunks[impl.value] = checked_thunk(shape, dtype, mode == "forward+backward", device, impl.value)
            except RedGateError as error:
                right = False
                print(f"RED, not measured: {impl.value} {dtype} {mode} {shape}: {error}", file=sys.stderr)
    if len(thunks) < 2:
        return right, None
    best, second, ratio = fastest(
        timing.interleave(thunks | {AGAIN: next(iter(thunks.values()))}, device, rounds=rounds)
    )
    of_device = 0 if device.type == "cuda" else threads
    row = Choice(
        device.type, choice.kind_of(device), dtype, mode, tokens, head_dim, at_least, best, second,
        round(ratio, 3), of_device,
    )  # fmt: skip
    print(f"{dtype} {mode} N={tokens} d={head_dim} rows={count}: {best}, {ratio:.2f}x {second}", flush=True)
    return right, row


def fastest(samples: dict[str, list[float]]) -> tuple[str, str, float]:
    """The implementation to take, the next best (or the faster one, within noise) and ms of that / ms of it.

    samples: ms in rounds; the first is the one to take without a table, AGAIN the same measured twice.
    """
    samples = dict(samples)
    default, again = next(iter(samples)), samples.pop(AGAIN)
    itself = timing.spread([b / a for a, b in zip(samples[default], again, strict=True)])
    ranked = sorted(samples, key=lambda impl: statistics.median(samples[impl]))
    if ranked[0] != default and _ratio(samples[ranked[0]], samples[default]) <= max(itself.p80, 1 / itself.p20):
        ranked.remove(default)
        ranked.insert(0, default)
    return ranked[0], ranked[1], _ratio(samples[ranked[0]], samples[ranked[1]])


def _ratio(ours: list[float], other: list[float]) -> float:
    """other / ours, median over rounds."""
    return statistics.median(b / a for a, b in zip(ours, other, strict=True))


def write(path: Path, row: Choice) -> None:
    """In the place of the one that answered the same question."""
    question = slice(0, Choice._fields.index("impl"))
    others = [each for each in choice.read(path) if each[question] != row[question]] if path.exists() else []
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Choice._fields)
        writer.writerows(sorted([*others, row]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
