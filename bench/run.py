"""`misplace bench [OP ...]`: every op against what people use today, correctness first."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from misplace.engine.commands.parsing import parse
from misplace.engine.errors import UserError
from misplace.kernels import Impl, ImplUnavailableError, resolve_impl
from misplace.kernels.impl import why_unavailable

from . import environment, results, timing
from .registry import Case, Thunk, cases_of, op_names
from .results import Row
from .roofline import floor_ms


@dataclass(frozen=True)
class Options:
    """Measure ops: ours and the peer alternate in one process, and an op that is wrong gets no number."""

    ops: Positional[tuple[str, ...]] = ()
    """Ops to measure; none: all."""
    impl: str | None = None
    """Implementations, with commas; none: every one that the op has on this device, but the reference."""
    against: str = "eager"
    """Peers or implementations to measure against, with commas: eager, compile, reference, ..."""
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


class RedGateError(Exception):
    """An implementation that disagrees with the reference: it gets no number."""


def main(argv: list[str]) -> int:
    """0 when everything asked for was measured, 1 when an implementation was wrong."""
    options = parse(Options, argv, prog="misplace bench")
    if options.rounds < 1:
        raise UserError(f"bench: --rounds {options.rounds}: must be 1 or more")
    device = _device(options.device)
    cases = [case for op in options.ops or op_names() for case in cases_of(op, tiny=options.tiny)]
    _check_names(options, cases)
    for target in filter(None, (options.json, options.csv)):
        results.check_target(target)
    rows, red = [], 0
    with timing.pinned_threads(options.threads) as threads:
        where = environment.describe(device)
        print(f"{where['device']}, {threads} threads, {where['versions']} {where['commit']}")
        for impl in Impl:
            if reason := why_unavailable(impl, device):
                print(f"without {impl.value}: {reason}")
        for case in cases:
            try:
                for row in measure(case, options, device):
                    rows.append(row)
                    print(line(row), flush=True)
            except RedGateError as error:
                red += 1
                print(f"misplace: RED, not measured: {error}", file=sys.stderr)
    if options.json:
        results.write_json(options.json, rows)
    if options.csv:
        results.append_csv(options.csv, rows)
    return 1 if red else 0


def _device(name: str | None) -> torch.device:
    if name not in (None, "cpu", "cuda"):
        raise UserError(f"bench: --device {name}: cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("bench: --device cuda: no CUDA device here")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _check_names(options: Options, cases: list[Case]) -> None:
    for case in cases:
        for against in options.against.split(","):
            if against not in (known := [*case.peers, *Impl]):
                raise UserError(f"bench: {case.op} has no peer {against!r}; one of {', '.join(known)}")
    for impl in options.impl.split(",") if options.impl else ():
        if impl not in list(Impl):
            raise UserError(f"bench: unknown impl {impl!r}; one of {', '.join(Impl)}")


def measure(case: Case, options: Options, device: torch.device) -> Iterator[Row]:
    """One row per implementation and peer; RedGateError at the first implementation that is wrong."""
    inputs = case.make_inputs(device)
    for impl in implementations(case.op, options.impl, device):
        error = gate(case, inputs, impl)
        floor = floor_ms(case.bytes_moved, case.operations, getattr(torch, case.dtype), device)
        for against in options.against.split(","):
            ours, peer = case.ours(inputs, impl), opponent(case, inputs, against, device)
            compared = timing.compare(ours, peer, device, rounds=options.rounds)
            yield _row(case, impl, against, error, compared, floor, device)


def implementations(op: str, asked: str | None, device: torch.device) -> list[str]:
    """Those asked for, each of which must run here; by default all that do, but the reference."""
    if asked is not None:
        return [available(op, impl, device) for impl in asked.split(",")]
    found = []
    for impl in (i for i in Impl if i is not Impl.REFERENCE):
        with contextlib.suppress(ImplUnavailableError):
            found.append(resolve_impl(op, impl, device).value)
    return found or [Impl.REFERENCE.value]


def available(op: str, impl: str, device: torch.device) -> str:
    """`impl` where the op has it on this device; else a UserError with the reason."""
    try:
        return resolve_impl(op, impl, device).value
    except ImplUnavailableError as error:
        raise UserError(f"bench: {error}") from None


def gate(case: Case, inputs, impl: str) -> float:
    """The error of an implementation against the oracle, where it is within its bound."""
    check = case.check(inputs, impl)
    if not check.error <= check.bound:  # NaN is red too
        where = f"{case.op} {impl} {case.mode} {case.shape} {case.dtype}"
        raise RedGateError(f"{where}: error {check.error:g}, allowed {check.bound:g}")
    return check.error


def opponent(case: Case, inputs, against: str, device: torch.device) -> Thunk:
    """A peer of the case, or one of our own implementations by its name."""
    if against in case.peers:
        return case.peers[against](inputs)
    return case.ours(inputs, available(case.op, against, device))


def _row(case, impl, against, error, compared, floor, device) -> Row:
    seconds = compared.ours.p50 * 1e-3
    return Row(
        op=case.op,
        impl=impl,
        against=against,
        mode=case.mode,
        shape=case.shape,
        dtype=case.dtype,
        ms=compared.ours.p50,
        p20=compared.ours.p20,
        p80=compared.ours.p80,
        against_ms=compared.against.p50,
        against_p20=compared.against.p20,
        against_p80=compared.against.p80,
        ratio=compared.ratio,
        self_p20=compared.itself.p20,
        self_p80=compared.itself.p80,
        counts=compared.counts,
        error=error,
        gb_s=case.bytes_moved / seconds * 1e-9,
        tflop_s=case.operations / seconds * 1e-12,
        floor_share=floor / compared.ours.p50,
        threads=torch.get_num_threads(),
        **environment.describe(device),
    )


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
