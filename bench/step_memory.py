"""python -m misplace.bench.step_memory [--tiny]: peak memory of a training step, fused and of PyTorch's operators."""

import sys

import torch

from .memory import peak_bytes
from .registry import cases_of

SIDES = ("auto", "torch", "reference")
WARM_UP = 2


def main(argv: list[str]) -> int:
    """Prints a line per case of `misplace bench step`: MB that a step's tensors take at once, and the ratio to auto."""
    if set(argv) - {"--tiny"}:
        print(__doc__, file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for case in cases_of("step", tiny=bool(argv)):
        peaks = {side: _peak(case, side, device) for side in SIDES}
        cells = [f"{side} {peak / 1e6:.1f} MB ({peak / peaks['auto']:.2f}x)" for side, peak in peaks.items()]
        print(f"step {case.shape} {case.dtype} {device.type}: {', '.join(cells)}", flush=True)
    return 0


def _peak(case, side: str, device: torch.device) -> int:
    step = case.ours(case.make_inputs(device), side)
    for _ in range(WARM_UP):
        step()
    return peak_bytes(step, device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
