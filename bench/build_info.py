"""What is built and what can run here: `python -m misplace.bench.build_info [--require cuda]` prints it."""

import json
import sys

import torch

from misplace.kernels.impl import Impl, why_unavailable


def build_info() -> dict:
    """torch and its CUDA, each implementation's state on this device, and how the extension was built."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    native = why_unavailable(Impl.NATIVE, torch.device("cpu"))
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": device.type,
        "implementations": {impl.value: why_unavailable(impl, device) or "available" for impl in Impl},
        "extension": native or _extension(),
    }


def _extension() -> dict[str, str]:
    from misplace.kernels import _C

    return _C.build_info()


def main(argv: list[str]) -> int:
    """Prints it; 1 where the extension is not built for the device type after --require."""
    print(json.dumps(build_info(), indent=1))
    if argv[:1] != ["--require"]:
        return 0
    reason = why_unavailable(Impl.NATIVE, torch.device(argv[1]))
    if reason:
        print(f"misplace: {reason}", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
