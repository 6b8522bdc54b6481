"""Run by test_patch_mse_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import functools
import importlib.util
from pathlib import Path

import torch

from misplace.kernels import patch_mse
from misplace.kernels.testing.compare import check, require_same_bits, values_and_gradients
from misplace.kernels.testing.shapes import LAYOUTS

spec = importlib.util.spec_from_file_location("shared", Path(__file__).with_name("test_patch_mse.py"))
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

# images, grid rows, grid columns, patch, channels, predicted patches: the last is walked in blocks
CASES = [
    (1, 1, 1, 1, 3, 1),
    (2, 3, 3, 1, 4, 5),
    (3, 5, 4, 3, 1, 13),
    (2, 2, 2, 3, 4, 4),
    (1, 2, 3, 16, 3, 3),
    (1, 1, 2, 33, 2, 2),
]
OPS = torch.ops.misplace


def ops(channels, patch_size, normalise=True):
    settings = shared.options(channels, patch_size, normalise)
    ours = functools.partial(patch_mse, impl="triton")
    return [functools.partial(each, **settings) for each in (ours, shared.eager, shared.oracle)]


def check_cases() -> None:
    for shape in CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for normalise in (True, False):
                check(*ops(shape[4], shape[3], normalise), shared.make(*shape, dtype=dtype), ["prediction"])
            print("within the tolerance", *shape, dtype, flush=True)


def check_layouts() -> None:
    tensors, (ours, _, _) = shared.make(2, 2, 2, 4, 3, 3), ops(3, 4)
    expected = values_and_gradients(ours, tensors, ["prediction"])
    for change in LAYOUTS.values():
        changed = {name: change(tensor) for name, tensor in tensors.items()}
        for name, result in values_and_gradients(ours, changed, ["prediction"]).items():
            assert torch.equal(result, expected[name]), name


def check_one_grey() -> None:
    for channels, patch_size in ((1, 3), (1, 16)):
        shared.test_one_grey_has_a_target_of_zero_to_the_bit("cpu", "triton", channels, patch_size)


def check_rescale() -> None:
    gradient = shared.normal(5000, seed=1, dtype=torch.bfloat16)
    for scale in (1.0, 0.25):
        scaled = gradient.clone()
        OPS.patch_mse_triton_rescale_(scaled, torch.tensor(scale))
        assert torch.equal(scaled, gradient * scale)


def check_registered() -> None:
    tensors = shared.make(2, 2, 2, 4, 3, 3, dtype=torch.bfloat16)
    require_same_bits(ops(3, 4)[0], tensors, ["prediction"])
    for gradient in (False, True):
        arguments = (*tensors.values(), 4, shared.MEAN[:3], shared.STD[:3], True, 1e-6, gradient)
        torch.library.opcheck(OPS.patch_mse_triton.default, arguments)
    torch.library.opcheck(OPS.patch_mse_triton_rescale_.default, (tensors["prediction"], torch.tensor(0.5)))
    print("opcheck passed")


def main() -> None:
    torch.set_num_threads(1)
    check_cases()
    check_layouts()
    check_one_grey()
    check_rescale()
    check_registered()


if __name__ == "__main__":
    main()
