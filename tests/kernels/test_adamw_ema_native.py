"""The CPU kernel: every vector path and number of threads gives the same bits; the registered op by itself."""

import copy
from functools import partial

import pytest
import torch

from misplace.kernels.adamw_ema import AdamWTensors, update
from misplace.kernels.impl import Impl, why_unavailable
from misplace.kernels.testing.optimizer_states import MASTERS, SETTINGS, advance_with, drawn, make, same_bits
from misplace.kernels.testing.shapes import offset

PATHS = ("plain", "avx2", "avx512")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

if reason := why_unavailable(Impl.NATIVE, torch.device("cpu")):
    pytest.skip(reason, allow_module_level=True)


def here() -> list[str]:
    """The paths of this CPU: all that are narrower than its widest."""
    from misplace.kernels.adamw_ema.native import cpu_path

    return list(PATHS[: PATHS.index(cpu_path()) + 1])


def by_path(path, tensors, gradients, *, step, lr, betas, eps, momentum):
    from misplace.kernels.adamw_ema.native import adamw_ema_native
    from misplace.kernels.adamw_ema.tensors import Scalars

    adamw_ema_native(tensors, gradients, Scalars(step, lr, 1.0, 0.5, momentum), betas, eps, path=path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_path_gives_the_same_bits(dtype):
    plain, *others = (advance_with(make(), partial(by_path, path), steps=2, dtype=dtype) for path in here())
    assert not same_bits(plain, make())
    assert all(same_bits(plain, other) for other in others)


def tiled(tensor):
    """Past the size from which copies are written around the caches, with a tail: 2^21 elements and some."""
    return torch.cat([tensor.repeat(1024), tensor[:13]])


@pytest.mark.parametrize("offset_copies", [False, True])
def test_copies_written_around_the_caches(offset_copies):
    (gradient,) = drawn([(2053,)], 5)
    states = []
    for path in here():
        state = {name: [tiled(tensor) for tensor in tensors] for name, tensors in make(shapes=[(2053,)]).items()}
        if offset_copies:
            state["teacher_copies"] = [offset(state["teacher_copies"][0])]
        by_path(path, AdamWTensors(**state, weight_decay=[0.1]), [tiled(gradient)], step=1, momentum=0.9, **SETTINGS)
        states.append(state)
    for state in states:
        assert same_bits(states[0], state)
        assert torch.equal(state["student_copies"][0], state["parameters"][0].bfloat16())
        assert torch.equal(state["teacher_copies"][0], state["teacher"][0].bfloat16())


def test_every_number_of_threads_gives_the_same_bits():
    before, states = torch.get_num_threads(), []
    start = make(shapes=[(50_001,), (3,), (257, 129), (16_384,)])
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            states.append(advance_with(copy.deepcopy(start), partial(update, impl="native"), steps=2))
    finally:
        torch.set_num_threads(before)
    assert same_bits(states[0], states[1]) and same_bits(states[0], states[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_where_it_is(bad):
    size = 77
    for path in here():
        state = make(shapes=[(size,)])
        tensors = AdamWTensors(**state, weight_decay=[0.1])
        gradient = drawn([(size,)], 5)[0]
        gradient[[3, 76]] = bad
        by_path(path, tensors, [gradient], step=1, momentum=0.9, **SETTINGS)
        finite = torch.ones(size, dtype=torch.bool)
        finite[[3, 76]] = False
        for name in ("parameters", "teacher", "student_copies", "teacher_copies"):
            tensor = state[name][0]
            assert torch.equal(tensor.isfinite(), finite), (path, name)
        for copies, masters in (("student_copies", "parameters"), ("teacher_copies", "teacher")):
            expected = state[masters][0].bfloat16()
            torch.testing.assert_close(state[copies][0], expected, rtol=0, atol=0, equal_nan=True)


def test_copies_round_to_nearest_even():
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 2.0**-130, 3.4e38, 0.0, -0.0])
    values = ties.repeat(9)  # whole vectors and a tail
    for path in here():
        state = {name: [torch.zeros(72)] for name in MASTERS}
        state |= {"student_copies": [torch.ones(72).bfloat16()], "parameters": [values.clone()]}
        tensors = AdamWTensors(**state, weight_decay=[0.0])
        by_path(path, tensors, [torch.zeros(72)], step=1, momentum=1.0, **SETTINGS | {"lr": 0.0})
        assert torch.equal(state["student_copies"][0].view(torch.int16), values.bfloat16().view(torch.int16)), path


def arguments(**changes):
    state = make(shapes=[(33,), (2, 3)])
    tensors = AdamWTensors(**state, weight_decay=[0.1, 0.0])
    named = {
        "state": tensors.state,
        "slots": tensors.slots,
        "gradients": [torch.ones(33), None],
        "weight_decay": [0.1, 0.0],
        "numbers": [1.0, 1e-3, 1.0, 0.0, 0.9, 0.0],
        "scalars": [None, None, None, torch.ones(()), None, None],
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "path": "best",
    }
    return tuple((named | changes).values())


def test_opcheck():
    torch.library.opcheck(torch.ops.misplace.adamw_ema.default, arguments())


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"slots": [-1]}, ValueError, "different length"),
        ({"slots": [99] * 6}, ValueError, "slot 99"),
        ({"numbers": [1.0]}, ValueError, "needs 6 numbers"),
        ({"gradients": [torch.ones(34), None]}, ValueError, "gradient 0"),
        ({"gradients": [torch.ones(66)[::2], None]}, ValueError, "not contiguous"),
        ({"gradients": [torch.ones(33).double(), None]}, TypeError, "must be float32, bfloat16 or float16"),
        ({"state": [torch.ones(33).double()] * 6, "slots": [-1] * 6}, TypeError, "a tensor is"),
        ({"path": "avx1024"}, ValueError, "no vector path 'avx1024'"),
    ],
)
def test_the_registered_op_checks_for_itself(changes, error, words):
    with pytest.raises(error, match=words):
        torch.ops.misplace.adamw_ema(*arguments(**changes))
