"""Run by test_layer_norm_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import functools
import importlib

import test_add_layer_norm as added
import test_layer_norm as plain
import torch

from misplace.kernels import add_layer_norm, layer_norm
from misplace.kernels.testing.compare import check, require_same_bits, values_and_gradients
from misplace.kernels.testing.shapes import LAYOUTS

# leading dimensions, width: fewer rows than a tile, more tiles than a program takes, a ragged row
CASES = [((1, 1), 7), ((2, 50), 192), ((3, 13), 33), ((2, 3), 1280)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = torch.ops.misplace
ours = functools.partial(layer_norm, impl="triton")
ours_added = functools.partial(add_layer_norm, impl="triton")


def check_cases() -> None:
    for shape, width in CASES:
        for dtype in DTYPES:
            tensors = plain.make(shape, width, dtype=dtype, weight_dtype=torch.float32)
            check(ours, plain.eager, plain.oracle, tensors, plain.WANTED)
            for scaled in (False, True):
                tensors = added.make(shape, width, dtype=dtype, scaled=scaled)
                check(ours_added, added.eager, added.oracle, tensors, added.WANTED)
            print("within the tolerance", *shape, width, dtype, flush=True)


def check_the_sum() -> None:
    """To the bit an addition and our layer_norm; in place too; its gradient alone.

    In fp32: Triton's interpreter cuts bf16 where a GPU rounds it.
    """
    tensors = added.make((3, 5), 33)
    x, branch, weight, bias = tensors.values()
    total, normed = ours_added(**tensors)
    assert torch.equal(total, x + branch) and torch.equal(normed, ours(x + branch, weight, bias))
    for place in (0, 1):
        alone = lambda f, place=place: lambda **given: f(**given)[place]
        check(alone(ours_added), alone(added.eager), alone(added.oracle), tensors, ["x", "branch"])
    over_x, again = ours_added(**tensors, inplace=True)
    assert over_x is x and torch.equal(x, total) and torch.equal(again, normed)
    print("sums agree")


def check_layouts() -> None:
    tensors = added.make((3, 5), 33, scaled=True)
    expected = values_and_gradients(ours_added, tensors, added.WANTED)
    for change in LAYOUTS.values():
        changed = {name: change(tensor) for name, tensor in tensors.items()}
        for name, result in values_and_gradients(ours_added, changed, added.WANTED).items():
            assert torch.equal(result, expected[name]), name


def check_more_tiles_than_programs() -> None:
    """Two programs and nine tiles, the last of them not full."""
    launches = importlib.import_module("misplace.kernels.layer_norm_triton")
    usual = launches.LAUNCH[256]
    launches.LAUNCH[256] = (*usual[:-1], 2)
    launches.launch_sizes.cache_clear()
    check(ours_added, added.eager, added.oracle, added.make((8 * usual[0] + 3,), 8), added.WANTED)
    launches.LAUNCH[256] = usual
    launches.launch_sizes.cache_clear()


def check_refusals() -> None:
    for op, make in ((ours, plain.make), (ours_added, added.make)):
        for tensors, words in (
            (make((1,), 8, dtype=torch.float64), "not torch.float64"),
            (make((1,), 8193), "up to 8192, not 8193"),
        ):
            try:
                op(**tensors)
            except (TypeError, ValueError) as error:
                assert words in str(error), error
            else:
                raise AssertionError(f"took {words}")


def check_registered() -> None:
    require_same_bits(ours_added, added.make((2, 50), 33, dtype=torch.bfloat16), added.WANTED)
    x, weight, bias = plain.make((4,), 8).values()
    torch.library.opcheck(OPS.layer_norm_triton.default, (x, weight, bias, 1e-6, True))
    y, mean, rstd = OPS.layer_norm_triton(x, weight, bias, 1e-6, True)
    torch.library.opcheck(OPS.layer_norm_triton_backward.default, (y, x, weight, mean, rstd))
    x, branch, weight, bias, scale = added.make((2, 3), 8, scaled=True).values()
    torch.library.opcheck(OPS.add_layer_norm_triton.default, (x, branch, weight, bias, scale, 1e-6, True))
    torch.library.opcheck(OPS.add_layer_norm_triton_.default, (x, branch, weight, bias, None, 1e-6))
    total, normed, mean, rstd = OPS.add_layer_norm_triton(x, branch, weight, bias, scale, 1e-6, True)
    for dsum in (None, total):
        arguments = (dsum, normed, total, weight, mean, rstd, scale)
        torch.library.opcheck(OPS.add_layer_norm_triton_backward.default, arguments)
    print("opcheck passed")


def main() -> None:
    torch.set_num_threads(1)
    check_cases()
    check_the_sum()
    check_layouts()
    check_more_tiles_than_programs()
    check_refusals()
    check_registered()


if __name__ == "__main__":
    main()
