"""One case against its peers: correct first, then both take turns."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from misplace.engine.errors import UserError
from misplace.kernels import OPS, Impl, ImplUnavailableError, resolve_impl

from . import environment, timing
from .registry import Case, Thunk
from .results import Row
from .roofline import floor_ms

AUTO = "auto"  # the engine's own choice for every op


class RedGateError(Exception):
    """An implementation that disagrees with the reference: it gets no number."""


def measure(
    case: Case, inputs: Any, impl: str, opponents: list[str], rounds: int, device: torch.device
) -> Iterator[Row]:
    """A row per opponent that the case has; RedGateError, and no row, where the implementation is wrong."""
    error = gate(case, inputs, impl)
    floor = floor_ms(case.bytes_moved, case.operations, getattr(torch, case.dtype), device)
    for against in opponents:
        if against in (*case.peers, *Impl):
            ours, peer = case.ours(inputs, impl), opponent(case, inputs, against, device)
            compared = timing.compare(ours, peer, device, rounds=rounds)
            yield _row(case, impl, against, error, compared, floor, device)


def implementations(op: str, asked: str | None, device: torch.device) -> list[str]:
    """Those asked for, each of which must run here; by default all that do, but the reference."""
    if asked is not None:
        return [available(op, impl, device) for impl in asked.split(",")]
    if op not in OPS:
        return [AUTO]
    found = []
    for impl in (i for i in Impl if i is not Impl.REFERENCE):
        with contextlib.suppress(ImplUnavailableError):
            found.append(resolve_impl(op, impl, device).value)
    return found or [Impl.REFERENCE.value]


def available(op: str, impl: str, device: torch.device) -> str:
    """`impl` where the op has it on this device; else a UserError with the reason.

    What is made of several ops takes the name as it is: "auto", or one that all of them have.
    """
    if op not in OPS:
        return impl
    try:
        return resolve_impl(op, impl, device).value
    except ImplUnavailableError as error:
        raise UserError(f"bench: {error}") from None


def gate(case: Case, inputs, impl: str) -> float:
    """The error of an implementation against the oracle, where it is within its bound."""
    check = case.check(inputs, impl)
    if not check.error <= check.bound:  # NaN is red too
        raise RedGateError(f"error {check.error:g}, allowed {check.bound:g}")
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
