"""Run by test_gelu_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import functools
import importlib

import torch
from test_gelu import eager, make, oracle

from misplace.kernels import gelu
from misplace.kernels.testing.compare import check, require_same_bits, values_and_gradients
from misplace.kernels.testing.shapes import LAYOUTS

# with a bias and without: less than a tile, more columns than one holds, a ragged row, nothing
CASES = [(1, 1), (37, 300), (2, 13, 33), (3, 0, 8)]
OPS = torch.ops.misplace
ours = functools.partial(gelu, impl="triton")


def check_cases() -> None:
    for shape in CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for biased in (False, True):
                tensors = make(shape, dtype=dtype, biased=biased)
                check(ours, eager, oracle, tensors, list(tensors))
            print("within the tolerance", *shape, dtype, flush=True)


def check_layouts() -> None:
    tensors = make((3, 5, 33))
    expected = values_and_gradients(ours, tensors, list(tensors))
    for change in LAYOUTS.values():
        changed = {name: change(tensor) for name, tensor in tensors.items()}
        for name, result in values_and_gradients(ours, changed, list(tensors)).items():
            assert torch.equal(result, expected[name]), name


def check_more_tiles_than_programs() -> None:
    module = importlib.import_module("misplace.kernels.gelu.triton")
    usual, module.MOST_PROGRAMS = module.MOST_PROGRAMS, 2
    tensors = make((10 * module.ROWS + 3, 7))
    check(ours, eager, oracle, tensors, list(tensors))
    module.MOST_PROGRAMS = usual


def check_registered() -> None:
    tensors = make((50, 33), dtype=torch.bfloat16)
    require_same_bits(ours, tensors, list(tensors))
    x, bias = make((4, 8)).values()
    for given in (None, bias):
        torch.library.opcheck(OPS.gelu_triton.default, (x, given))
        torch.library.opcheck(OPS.gelu_triton_backward.default, (x, x, given))
    print("opcheck passed")


def main() -> None:
    torch.set_num_threads(1)
    check_cases()
    check_layouts()
    check_more_tiles_than_programs()
    check_registered()


if __name__ == "__main__":
    main()
