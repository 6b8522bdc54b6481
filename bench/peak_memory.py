"""python -m misplace.bench.peak_memory: what a call's tensors take at once, ours and the peers'."""

import sys
from dataclasses import dataclass

import torch
from tyro.conf import Positional

from misplace.engine.commands.parsing import parse
from misplace.engine.errors import UserError

from .measure import opponent
from .memory import peak_bytes
from .registry import Case, cases_of

PROG = "python -m misplace.bench.peak_memory"
WARM_UP = 2


@dataclass(frozen=True)
class Options:
    """Peak memory of `misplace bench` cases, in MB beyond what is held before the call, and its share of ours."""

    ops: Positional[tuple[str, ...]] = ("trunk", "step")
    """Ops, as `misplace bench` names them."""
    against: str = "eager,reference"
    """Peers or implementations, with commas."""
    mode: str = "forward+backward,step"
    """Modes, with commas."""
    shape: str = ""
    """Only the shapes that contain this text."""
    tiny: bool = False
    """Tiny shapes: a rehearsal."""


def main(argv: list[str]) -> int:
    """Prints a line per case."""
    options = parse(Options, argv, prog=PROG)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = [case for op in options.ops for case in cases_of(op, tiny=options.tiny)]
    found = [case for case in found if case.mode in options.mode.split(",") and options.shape in case.shape]
    if not found:
        raise UserError(f"{PROG}: no case of {', '.join(options.ops)} in that mode and shape")
    for case in found:
        peaks = {side: _peak(case, side, device) for side in ("auto", *options.against.split(","))}
        cells = [f"{side} {peak / 1e6:.1f} MB ({peaks['auto'] / peak:.2f})" for side, peak in peaks.items()]
        print(f"{case.op} {case.mode} {case.shape} {case.dtype} {device.type}: {', '.join(cells)}", flush=True)
    return 0


def _peak(case: Case, side: str, device: torch.device) -> int:
    inputs = case.make_inputs(device)
    call = case.ours(inputs, "auto") if side == "auto" else opponent(case, inputs, side, device)
    for _ in range(WARM_UP):
        call()
    return peak_bytes(call, device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
