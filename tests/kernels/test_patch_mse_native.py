"""The CPU kernel of patch_mse: each instruction set that this CPU has, threads, and what the registered op checks."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from misplace.kernels import Impl, patch_mse
from misplace.kernels.impl import why_unavailable
from misplace.kernels.patch_mse import native
from misplace.kernels.testing.compare import check, values_and_gradients

spec = importlib.util.spec_from_file_location("shared", Path(__file__).with_name("test_patch_mse.py"))
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
MEAN, STD, eager, make, options, oracle = (
    getattr(shared, name) for name in ("MEAN", "STD", "eager", "make", "options", "oracle")
)

pytestmark = pytest.mark.skipif(
    why_unavailable(Impl.NATIVE, torch.device("cpu")) is not None, reason="misplace.kernels._C is not built"
)
ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
# images, grid rows, grid columns, patch, channels, predicted patches
SHAPES = [(2, 3, 2, 4, 1, 5), (2, 2, 2, 5, 2, 3), (1, 2, 2, 16, 3, 4), (2, 2, 2, 7, 4, 3), (1, 1, 1, 65, 3, 1)]


def require_isa(isa):
    tensors = make(1, 1, 1, 2, 1, 1)
    try:
        native.patch_mse(*tensors.values(), 2, MEAN[:1], STD[:1], True, 1e-6, isa=isa)
    except ValueError as error:
        assert "this CPU has no" in str(error)
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_against_fp64(isa, dtype):
    require_isa(isa)

    def ours(prediction, images, index, *, patch_size, mean, std, normalise, eps=1e-6):
        return native.patch_mse(prediction, images, index, patch_size, mean, std, normalise, eps, isa=isa)

    for shape in SHAPES:
        for normalise in (True, False):
            settings = options(shape[4], shape[3], normalise)
            ops = (functools.partial(f, **settings) for f in (ours, eager, oracle))
            check(*ops, make(*shape, dtype=dtype), ["prediction"])


def test_the_path_is_told():
    assert native.cpu_path() in ISAS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(200, 7, 7, 4, 1, 37), (5, 4, 4, 16, 3, 12), (3, 2, 2, 40, 4, 3)], ids=str)
def test_bits_do_not_depend_on_threads(shape, dtype):
    """7,400 patches of 16 numbers, 60 of 768 and 9 of 6,400: several tasks each."""
    op = functools.partial(patch_mse, **options(shape[4], shape[3]), impl="native")
    tensors, before, runs = make(*shape, dtype=dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(values_and_gradients(op, tensors, ["prediction"]))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(run[name], result) for name, result in runs[0].items())


def test_the_largest_patch_of_white():
    """The largest sums of whole numbers that there are; in fp32 the squares alone would be off by hundreds."""
    images = torch.full((1, 128, 128, 4), 255, dtype=torch.uint8)
    images[0, 0, 0] = 254
    prediction, index = torch.zeros(1, 1, 4 * 128**2), torch.zeros(1, 1, dtype=torch.int32)
    loss = patch_mse(prediction, images, index, **options(4, 128), eps=0.0, impl="native")
    exact = oracle(prediction.double(), images, index, **options(4, 128), eps=0.0)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("gradient", [True, False])
def test_opcheck(gradient):
    tensors = make(2, 2, 3, 4, 3, 5, dtype=torch.bfloat16)
    arguments = (*tensors.values(), 4, MEAN[:3], STD[:3], True, 1e-6, "", gradient)
    opcheck(torch.ops.misplace.patch_mse.default, arguments)


@pytest.mark.parametrize(
    "place, wrong, error, words",
    [
        (0, torch.zeros(2, 5, 48).half(), TypeError, "native takes float32 or bfloat16"),
        (0, torch.zeros(2, 5, 47), ValueError, "prediction must be"),
        (1, torch.zeros(2, 8, 12, 3), TypeError, "images must be uint8"),
        (1, torch.zeros(3, 8, 12, 3, dtype=torch.uint8), ValueError, "images must be"),
        (1, torch.zeros(2, 8, 12, 5, dtype=torch.uint8), ValueError, "1 to 4 channels"),
        (1, torch.zeros(2, 9, 12, 3, dtype=torch.uint8), ValueError, "no grid"),
        (2, torch.zeros(2, 5, dtype=torch.int64), TypeError, "index int32"),
        (3, 129, ValueError, "patches of 1 to 128"),
        (4, [0.5], ValueError, "one number per channel"),
        (8, "sse9", ValueError, "unknown instruction set"),
    ],
)
def test_the_registered_op_checks_for_itself(place, wrong, error, words):
    arguments = [*make(2, 2, 3, 4, 3, 5).values(), 4, MEAN[:3], STD[:3], True, 1e-6, "", True]
    arguments[place] = wrong
    with pytest.raises(error, match=words):
        torch.ops.misplace.patch_mse(*arguments)
