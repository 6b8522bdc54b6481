"""The CPU kernels of restore: each instruction set that this CPU has, threads, and what the registered ops check."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from misplace.kernels import Impl, restore
from misplace.kernels.impl import why_unavailable
from misplace.kernels.restore import native
from misplace.kernels.testing.compare import check, values_and_gradients
from misplace.kernels.testing.inputs import normal

spec = importlib.util.spec_from_file_location("shared", Path(__file__).with_name("test_restore.py"))
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
WANTED, eager, make, oracle = (getattr(shared, name) for name in ("WANTED", "eager", "make", "oracle"))

pytestmark = pytest.mark.skipif(
    why_unavailable(Impl.NATIVE, torch.device("cpu")) is not None, reason="misplace.kernels._C is not built"
)
OPS = torch.ops.misplace
ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_against_fp64(isa, dtype):
    try:
        native.restore(*make(1, 1, 1, 1).values(), isa=isa)
    except ValueError as error:
        assert "this CPU has no" in str(error)
        pytest.skip(str(error))
    for shape in ((3, 13, 5, 64), (2, 14, 4, 33), (5, 4, 1, 3)):
        check(functools.partial(native.restore, isa=isa), eager, oracle, make(*shape, dtype=dtype), WANTED)


def test_the_path_is_told():
    assert native.cpu_path() in ISAS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(300, 16, 4, 33), (5, 196, 49, 260), (3, 5, 2, 7)], ids=str)
def test_bits_do_not_depend_on_threads(shape, dtype):
    tensors, before, runs = make(*shape, dtype=dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(values_and_gradients(functools.partial(restore, impl="native"), tensors, WANTED))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(run[name], result) for name, result in runs[0].items())


def test_opcheck():
    tensors = make(2, 9, 4, 7, dtype=torch.bfloat16)
    opcheck(OPS.restore.default, (*tensors.values(), ""))
    gradient = normal(2, 10, 7, seed=5, dtype=torch.bfloat16)
    for of_position in (False, True):
        opcheck(OPS.restore_backward.default, (gradient, tensors["src"], of_position, ""))


@pytest.mark.parametrize(
    "place, wrong, error, words",
    [
        (0, torch.zeros(2, 5, 7).half(), TypeError, "native takes float32 or bfloat16"),
        (0, torch.zeros(2, 4, 7), ValueError, "a token for each entry of src"),
        (0, torch.zeros(5, 7), ValueError, "tokens must be"),
        (1, torch.zeros(2, 4, dtype=torch.int64), TypeError, "src must be int32"),
        (1, torch.zeros(3, 4, dtype=torch.int32), ValueError, "src must be"),
        (2, torch.zeros(6), ValueError, "mask_token must be"),
        (3, torch.zeros(3, 7), ValueError, "K up to 2"),
        (4, "sse9", ValueError, "unknown instruction set"),
    ],
)
def test_the_registered_ops_check_for_themselves(place, wrong, error, words):
    arguments = [*make(2, 9, 4, 7).values(), ""]
    arguments[place] = wrong
    with pytest.raises(error, match=words):
        OPS.restore(*arguments)


def test_the_registered_backward_checks_for_itself():
    src = make(2, 9, 4, 7)["src"]
    with pytest.raises(ValueError, match="the gradient must be"):
        OPS.restore_backward(torch.zeros(10, 7), src, False, "")
    with pytest.raises(ValueError, match="K up to 3"):
        OPS.restore_backward(torch.zeros(2, 4, 7), src, False, "")
    with pytest.raises(IndexError, match=r"src must be in \[0, 9\), found 9"):
        OPS.restore_backward(torch.zeros(2, 10, 7), src.fill_(9), False, "")
