"""`misplace bench [OP ...]`: every op against what people use today, correctness first."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from misplace.engine.commands.parsing import parse
from misplace.engine.cpu_training import keep_freed_memory
from misplace.engine.errors import UserError
from misplace.kernels import Impl
from misplace.kernels.impl import why_unavailable

from . import environment, results, timing
from .measure import AUTO, RedGateError, implementations, measure
from .registry import Case, cases_of, op_names
from .results import Row


@dataclass(frozen=True)
class Options:
    """Measure ops: ours and the peer alternate in one process, and an op that is wrong gets no number.

    `misplace bench data` measures how fast images are decoded and augmented: see its own --help.
    """

    ops: Positional[tuple[str, ...]] = ()
    """Ops to measure; none: all."""
    impl: str | None = None
    """Implementations, with commas; none: every one that the op has on this device, but the
    reference; for `step`, auto."""
    against: str = "eager"
    """Peers or implementations to measure against, with commas: eager, compile, reference, ..."""
    mode: str | None = None
    """Modes to measure, with commas: forward, forward+backward, step; none: all."""
    shape: str = ""
    """Measure only the shapes that contain this text, such as nano or B=64."""
    device: str | None = None
    """cpu or cuda; none: cuda where there is one."""
    rounds: int = 25
    """Times that ours and the peer take turns."""
    threads: int | None = None
    """CPU threads; none: as many as torch takes."""
    tiny: bool = False
    """Tiny shapes: a rehearsal, whose numbers say nothing."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write the rows to this file."""
    csv: Annotated[Path | None, arg(metavar="FILE")] = None
    """Append the rows to this file, such as bench/results.csv."""


def main(argv: list[str]) -> int:
    """0 when everything asked for was measured, 1 when an implementation was wrong or something did not fit."""
    if argv and argv[0] == "data":
        from .data.command import main as bench_data

        return bench_data(argv[1:])
    options = parse(Options, argv, prog="misplace bench")
    _check_numbers(options)
    device = _device(options.device)
    cases = _cases(options)
    _check_names(options, cases)
    for target in filter(None, (options.json, options.csv)):
        results.check_target(target)
    if device.type == "cpu":
        keep_freed_memory()  # as training does, for both sides: else they are charged for new pages in every call
    with timing.pinned_threads(options.threads) as threads:
        _say_where(device, threads)
        complete = _measure_all(cases, options, device)
    return 0 if complete else 1


def _measure_all(cases: list[Case], options: Options, device: torch.device) -> bool:
    """Whether no case was left out; after each the rows so far are in the files."""
    rows, complete = [], True
    for case in cases:
        before = len(rows)
        inputs = case.make_inputs(device)
        for impl in implementations(case.op, options.impl, device):
            try:
                for row in measure(case, inputs, impl, options.against.split(","), options.rounds, device):
                    rows.append(row)
                    print(line(row), flush=True)
            except (RedGateError, torch.OutOfMemoryError) as error:
                complete = False
                red = "RED, " if isinstance(error, RedGateError) else ""
                where, reason = f"{case.op} {impl} {case.mode} {case.shape} {case.dtype}", str(error).partition("\n")[0]
                print(f"misplace: {red}not measured: {where}: {reason}", file=sys.stderr)
        if options.json:
            results.write_json(options.json, rows)
        if options.csv:
            results.append_csv(options.csv, rows[before:])
    return complete


def _say_where(device: torch.device, threads: int) -> None:
    where = environment.describe(device)
    print(f"{where['device']}, {threads} threads, {where['versions']} {where['commit']}")
    for impl in Impl:
        if reason := why_unavailable(impl, device):
            print(f"without {impl.value}: {reason}")


def _check_numbers(options: Options) -> None:
    for name, value in (("rounds", options.rounds), ("threads", options.threads)):
        if value is not None and value < 1:
            raise UserError(f"bench: --{name} {value}: must be 1 or more")


def _cases(options: Options) -> list[Case]:
    cases = [case for op in options.ops or op_names() for case in cases_of(op, tiny=options.tiny)]
    if not (cases := [case for case in cases if options.shape in case.shape]):
        raise UserError(f"bench: --shape {options.shape}: no shape contains it")
    if options.mode is None:
        return cases
    modes = options.mode.split(",")
    if unknown := set(modes) - (known := {case.mode for case in cases}):
        raise UserError(f"bench: --mode {min(unknown)}: one of {', '.join(sorted(known))}")
    return [case for case in cases if case.mode in modes]


def _device(name: str | None) -> torch.device:
    if name not in (None, "cpu", "cuda"):
        raise UserError(f"bench: --device {name}: cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("bench: --device cuda: no CUDA device here")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _check_names(options: Options, cases: list[Case]) -> None:
    """A peer that no case has is a mistake; one that some cases lack is left out there, in so many words."""
    for against in options.against.split(","):
        lacking = sorted({case.op for case in cases if against not in (*case.peers, *Impl)})
        if lacking and all(against not in case.peers for case in cases):
            known = ", ".join(dict.fromkeys([*(peer for case in cases for peer in case.peers), *Impl]))
            raise UserError(f"bench: {', '.join(lacking)} has no peer {against!r}; one of {known}")
        if lacking:
            print(f"without {against}: {', '.join(lacking)} has no such peer")
    for impl in options.impl.split(",") if options.impl else ():
        if impl not in (AUTO, *Impl):
            raise UserError(f"bench: unknown impl {impl!r}; one of {', '.join([AUTO, *Impl])}")


def line(row: Row) -> str:
    """A row for the eye."""
    noise = max(row.self_p80, 1 / row.self_p20) - 1
    verdict = "" if row.counts else ", within noise"
    return (
        f"{row.op} {row.impl} {row.mode} {row.shape} {row.dtype}: "
        f"{row.ms:.4g} ms ({row.p20:.4g}-{row.p80:.4g}), {row.against} {row.against_ms:.4g} ms, "
        f"{row.ratio:.2f}x (itself ±{noise:.0%}{verdict}), error {row.error:.3g}, "
        f"{row.gb_s:.3g} GB/s, {row.floor_share:.1%} of the floor"
    )
