"""Run by test_token_bce.py in its own process with ATEN_CPU_CAPABILITY set: the path that it leaves the CPU kernel."""

import functools
import sys

import torch
from test_token_bce import SHAPES, WANTED, eager, make, oracle

from misplace.kernels import token_bce
from misplace.kernels.testing.compare import check


def main(path: str) -> None:
    torch.set_num_threads(1)
    cases = [(shape, torch.bfloat16) for shape in SHAPES] + [(SHAPES[2], torch.float32)]
    for (batch, kept, width, offset), dtype in cases:
        ours = functools.partial(token_bce, impl="native")
        tensors = make(batch, kept, width, offset, dtype, weighted=True)
        check(*(functools.partial(op, offset=offset) for op in (ours, eager, oracle)), tensors, WANTED)
    assert torch.ops.misplace.token_bce_path() == path, torch.ops.misplace.token_bce_path()
    print(f"{path}: {len(cases)} cases within the tolerance")


if __name__ == "__main__":
    main(sys.argv[1])
