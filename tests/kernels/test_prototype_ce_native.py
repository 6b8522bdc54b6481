"""What prototype_ce promises beyond its values on a CPU: bits, instruction sets and checks of its own."""

import functools

import pytest
import torch

from misplace.kernels import Impl, cpu_paths, prototype_ce
from misplace.kernels.impl import why_unavailable
from misplace.kernels.prototype_ce import native
from misplace.kernels.testing.compare import check, values_and_gradients
from misplace.kernels.testing.prototypes import DTYPES, WANTED, eager, make, oracle

pytestmark = pytest.mark.skipif(
    why_unavailable(Impl.NATIVE, torch.device("cpu")) is not None, reason="misplace.kernels._C is not built"
)
ours = functools.partial(prototype_ce, impl="native")


def of_isa(isa):
    def op(student, teacher, prototypes, teacher_prototypes, centre):
        temperatures = 0.1, torch.tensor(0.04, dtype=torch.float64)
        return native.prototype_ce(student, teacher, prototypes, teacher_prototypes, centre, *temperatures, isa=isa)

    return op


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set(isa, dtype):
    tensors = make(10, 2, 3, 257, 33, dtype)
    try:
        of_isa(isa)(**tensors)
    except ValueError as error:
        pytest.skip(str(error))
    check(of_isa(isa), eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_for_any_number_of_threads(dtype):
    tensors, usual, results = make(4, 2, 8, 2500, 48, dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(ours, tensors, WANTED))
    finally:
        torch.set_num_threads(usual)
    for other in results[1:]:
        assert all(torch.equal(result, other[name]) for name, result in results[0].items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_fill_more_than_a_wide_tile(dtype):
    reference = functools.partial(prototype_ce, impl="reference")
    check(ours, eager, reference, make(11, 2, 33, 193, 24, dtype), WANTED)


@pytest.mark.parametrize("gradients", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, gradients):
    tensors = make(3, 2, 2, 61, 9, dtype)
    ours(**tensors)
    arguments = (*tensors.values(), torch.tensor(0.04), 0.1, *gradients, "")
    torch.library.opcheck(torch.ops.misplace.prototype_ce.default, arguments)


def test_the_path_is_told():
    assert cpu_paths()["prototype_ce"].split(",")[0] in ("plain", "avx2", "avx512", "avx512_bf16", "amx")


def test_dtypes_it_does_not_take_are_named():
    tensors = make(3, 2, 2, 31, 8)
    half = tensors | {name: tensors[name].half() for name in ("student", "teacher")}
    with pytest.raises(TypeError, match="impl=native takes"):
        ours(**half)
    assert prototype_ce(**half)[0].isfinite()


def test_the_registered_op_checks_for_itself():
    tensors = make(3, 2, 2, 31, 8)
    ours(**tensors)
    arguments = [*tensors.values(), torch.tensor(0.04), 0.1, True, True, ""]
    for place, wrong, error, words in (
        (0, torch.zeros(3, 2, 8).half(), TypeError, "one dtype"),
        (0, torch.zeros(6, 8), ValueError, "need student"),
        (0, torch.zeros(0, 2, 8), ValueError, "no pair"),
        (1, torch.zeros(2, 3, 8), ValueError, r"teacher must be \[G, B, D\]"),
        (2, torch.zeros(30, 8), ValueError, "both prototypes"),
        (2, torch.zeros(31, 8).double(), TypeError, "one dtype"),
        (4, torch.zeros(30), ValueError, r"centre \[P\]"),
        (5, torch.zeros(1), ValueError, "teacher_temperature must be"),
        (6, 0.0, ValueError, "student_temperature above 0"),
        (9, "mmx", ValueError, "unknown instruction set mmx"),
    ):
        changed = [*arguments[:place], wrong, *arguments[place + 1 :]]
        with pytest.raises(error, match=words):
            torch.ops.misplace.prototype_ce(*changed)
