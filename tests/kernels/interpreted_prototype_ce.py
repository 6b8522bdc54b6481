"""Run by test_prototype_ce_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import functools

import torch

from misplace.kernels import prototype_ce
from misplace.kernels.testing.compare import check, require_same_bits, values_and_gradients
from misplace.kernels.testing.prototypes import DTYPES, WANTED, eager, make, oracle
from misplace.kernels.testing.shapes import LAYOUTS

# crops, global crops, images, prototypes, width
CASES = [(2, 2, 1, 13, 7), (10, 2, 2, 67, 33), (1, 2, 5, 2, 31), (4, 3, 2, 37, 16), (7, 2, 10, 70, 130)]
ours = functools.partial(prototype_ce, impl="triton")


def check_cases() -> None:
    for shape in CASES:
        for dtype in DTYPES:
            check(ours, eager, functools.partial(prototype_ce, impl="reference"), make(*shape, dtype), WANTED)
            print("within the tolerance", shape, dtype, flush=True)
    check(ours, eager, oracle, make(3, 2, 2, 61, 9, torch.float16), WANTED)
    print("within the tolerance", torch.float16, flush=True)


def check_layouts_and_parts() -> None:
    tensors = make(3, 2, 2, 61, 9)
    expected = values_and_gradients(ours, tensors, WANTED)
    for change in LAYOUTS.values():
        changed = {name: change(tensor) for name, tensor in tensors.items()}
        for name, result in values_and_gradients(ours, changed, WANTED).items():
            assert torch.equal(result, expected[name]), name
    for wanted in ([], WANTED[:1], WANTED[1:]):
        for name, result in values_and_gradients(ours, tensors, wanted).items():
            assert torch.equal(result, expected[name]), name


def check_hostile() -> None:
    tensors = make(3, 2, 2, 31, 8)
    for name in ("student", "teacher", "prototypes"):
        tensors[name][0] = 0
    assert all(result.isfinite().all() for result in values_and_gradients(ours, tensors, WANTED).values())
    cold = dict(student_temperature=0.004, teacher_temperature=torch.tensor(0.004))
    functions = (functools.partial(function, **cold) for function in (ours, eager, oracle))
    check(*functions, make(3, 2, 2, 61, 9), WANTED)


def check_refusals() -> None:
    wide, double = make(2, 2, 1, 3, 257), {name: tensor.double() for name, tensor in make(2, 2, 1, 3, 8).items()}
    for tensors, words in ((double, "float64"), (wide, "256, not 257")):
        try:
            ours(**tensors)
        except (TypeError, ValueError) as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"took {words}")


def main() -> None:
    torch.set_num_threads(1)
    check_cases()
    check_layouts_and_parts()
    check_hostile()
    check_refusals()
    require_same_bits(ours, make(3, 2, 2, 61, 9, torch.bfloat16), WANTED)
    for gradients in ((False, False), (True, True)):
        arguments = (*make(2, 2, 1, 5, 3).values(), torch.tensor(0.04), 0.1, *gradients)
        torch.library.opcheck(torch.ops.misplace.prototype_ce_triton.default, arguments)
    print("opcheck passed")


if __name__ == "__main__":
    main()
