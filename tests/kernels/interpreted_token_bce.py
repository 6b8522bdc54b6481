"""Run by test_token_bce_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import functools
import importlib

import torch
from test_token_bce import WANTED, eager, make, oracle

from misplace.kernels import token_bce
from misplace.kernels.testing.compare import check, require_same_bits, values_and_gradients
from misplace.kernels.testing.shapes import LAYOUTS

# images, patch tokens, width, offset
CASES = [(1, 1, 7, 1), (2, 49, 192, 1), (3, 13, 33, 0), (2, 5, 257, 2)]
ours = functools.partial(token_bce, impl="triton")
triton = importlib.import_module("misplace.kernels.token_bce.triton")


def check_cases() -> None:
    for number, (batch, kept, width, offset) in enumerate(CASES):
        for dtype in (torch.float32, torch.bfloat16):
            tensors = make(batch, kept, width, offset, dtype, weighted=number % 2 == 1)
            check(*(functools.partial(op, offset=offset) for op in (ours, eager, oracle)), tensors, WANTED)
            print("within the tolerance", batch, kept, width, offset, dtype, flush=True)
    tensors = make(2, 5, 33, dtype=torch.float16)
    check(ours, eager, oracle, tensors, WANTED)
    print("within the tolerance", torch.float16, flush=True)


def check_layouts() -> None:
    tensors = make(3, 5, 33)
    expected = values_and_gradients(ours, tensors, WANTED)
    for change in LAYOUTS.values():
        changed = tensors | {name: change(tensors[name]) for name in ("tokens", "target", "weight", "norm_bias")}
        for name, result in values_and_gradients(ours, changed, WANTED).items():
            assert torch.equal(result, expected[name]), name


def check_refusals() -> None:
    for tensors, words in ((make(1, 2, 8, dtype=torch.float64), "float64"), (make(1, 2, 8193), "8192, not 8193")):
        try:
            ours(**tensors)
        except (TypeError, ValueError) as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"took {words}")


def check_more_tiles_than_programs() -> None:
    """Two programs and three tiles, the last of them not full."""
    usual = triton.LAUNCH[256]
    triton.LAUNCH[256] = (*usual[:-1], 2)
    triton.launch_sizes.cache_clear()
    check(ours, eager, oracle, make(1, 2 * usual[0] + 3, 8), WANTED)
    triton.LAUNCH[256] = usual
    triton.launch_sizes.cache_clear()


def check_rescale() -> None:
    gradient, parameters = torch.arange(5000.0).bfloat16(), torch.ones(7)
    rescale = torch.ops.misplace.token_bce_triton_rescale_
    for scale in (1.0, 0.5):
        expected = gradient * scale
        rescale(gradient, parameters, torch.tensor(scale))
        assert torch.equal(gradient, expected) and torch.equal(parameters, torch.full((7,), scale))


def main() -> None:
    torch.set_num_threads(1)
    check_cases()
    check_layouts()
    check_refusals()
    check_more_tiles_than_programs()
    check_rescale()
    require_same_bits(ours, make(2, 5, 33, dtype=torch.bfloat16), WANTED)
    tensors = make(1, 2, 7, weighted=True)
    for gradients in (False, True):
        arguments = (*tensors.values(), 1, 1e-6, gradients)
        torch.library.opcheck(torch.ops.misplace.token_bce_triton.default, arguments)
    print("opcheck passed")


if __name__ == "__main__":
    main()
