"""Run by test_restore_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import functools
import importlib
import importlib.util
from pathlib import Path

import torch

from misplace.kernels import restore
from misplace.kernels.testing.compare import check, require_same_bits, values_and_gradients
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS

spec = importlib.util.spec_from_file_location("shared", Path(__file__).with_name("test_restore.py"))
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

# images, patches, kept, width: none kept, all kept, more columns than a tile has, no patches, no images
CASES = [(1, 1, 1, 1), (2, 9, 0, 7), (2, 6, 6, 33), (2, 7, 3, 300), (2, 0, 0, 5), (0, 4, 2, 8)]
OPS = torch.ops.misplace
ours = functools.partial(restore, impl="triton")


def check_layouts() -> None:
    tensors = shared.make(2, 5, 2, 33)
    expected = values_and_gradients(ours, tensors, shared.WANTED)
    for change in LAYOUTS.values():
        changed = {name: change(tensor) for name, tensor in tensors.items()}
        for name, result in values_and_gradients(ours, changed, shared.WANTED).items():
            assert torch.equal(result, expected[name]), name


def check_more_tiles_than_programs() -> None:
    module = importlib.import_module("misplace.kernels.restore.triton")
    usual, module.MOST_PROGRAMS = module.MOST_PROGRAMS, 2
    check(ours, shared.eager, shared.oracle, shared.make(9, 7, 3, 5), shared.WANTED)
    module.MOST_PROGRAMS = usual


def check_registered() -> None:
    tensors = shared.make(2, 5, 2, 7, dtype=torch.bfloat16)
    require_same_bits(ours, tensors, shared.WANTED)
    torch.library.opcheck(OPS.restore_triton.default, tuple(tensors.values()))
    gradient = normal(2, 6, 7, seed=5, dtype=torch.bfloat16)
    for of_position in (False, True):
        torch.library.opcheck(OPS.restore_triton_backward.default, (gradient, tensors["src"], of_position))
    print("opcheck passed")


def main() -> None:
    torch.set_num_threads(1)
    for shape in CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check(ours, shared.eager, shared.oracle, shared.make(*shape, dtype=dtype), shared.WANTED)
            print("within the tolerance", *shape, dtype, flush=True)
    check_layouts()
    check_more_tiles_than_programs()
    check_registered()


if __name__ == "__main__":
    main()
