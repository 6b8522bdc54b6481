import copy

import pytest
import torch

from misplace.kernels import adamw_ema
from misplace.kernels.adamw_ema import SUPPORTED
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.poison import poisoned_memory
from misplace.kernels.testing.tolerance import VALUE_FACTOR, require_close, size

IMPLS = runnable(SUPPORTED)
# a matrix, a scalar, primes, a multiple of every vector width and its neighbours, nothing
SHAPES = [(192, 37), (), (1,), (13,), (2, 3, 5), (1024,), (1023,), (0, 4)]
WEIGHT_DECAY = [0.1, 0.0, 0.0, 0.1, 0.04, 0.1, 0.0, 0.1]
SETTINGS = {"lr": 1.5e-3, "betas": (0.9, 0.999), "eps": 1e-8}
STEPS = 5
MASTERS = ("parameters", "exp_avg", "exp_avg_sq", "teacher")


def make(dtype=torch.float32, device="cpu", shapes=SHAPES, teacher=True):
    """State before the first step; every third tensor has no teacher, every second no copies."""

    def tensors(seed):
        return [normal(*shape, seed=seed + i, dtype=dtype, device=device) for i, shape in enumerate(shapes)]

    state = {
        "parameters": tensors(0),
        "exp_avg": [torch.zeros_like(p) for p in tensors(0)],
        "exp_avg_sq": [torch.zeros_like(p) for p in tensors(0)],
    }
    if teacher:
        state["teacher"] = [None if i % 3 == 2 else tensor for i, tensor in enumerate(tensors(100))]
        state["student_copies"] = [
            None if i % 2 else torch.zeros_like(p, dtype=torch.bfloat16) for i, p in enumerate(state["parameters"])
        ]
        state["teacher_copies"] = [
            None if t is None or i % 2 else torch.zeros_like(t, dtype=torch.bfloat16)
            for i, t in enumerate(state["teacher"])
        ]
    return state


def gradients(step, dtype=torch.float32, device="cpu", shapes=SHAPES):
    return [normal(*s, seed=1000 * step + i, dtype=dtype, device=device) for i, s in enumerate(shapes)]


def advance(state, impl, *, steps=STEPS, dtype=torch.float32, grad_scale=1.0, momentum=0.99, **changes):
    shapes = [tuple(p.shape) for p in state["parameters"]]
    device = state["parameters"][0].device.type
    options = SETTINGS | {"weight_decay": WEIGHT_DECAY[: len(shapes)], "grad_scale": grad_scale} | changes
    if "teacher" in state:
        options["momentum"] = momentum
    for step in range(1, steps + 1):
        adamw_ema(**state, gradients=gradients(step, dtype, device, shapes), step=step, impl=impl, **options)
    return state


def plain_torch(state, *, foreach, dtype=torch.float32, grad_scale=1.0, momentum=0.99):
    """torch.optim.AdamW, the EMA and the copies one by one; the state is that of the optimiser."""
    parameters = state["parameters"]
    groups = [{"params": [p], "weight_decay": wd} for p, wd in zip(parameters, WEIGHT_DECAY)]
    optimizer = torch.optim.AdamW(groups, **SETTINGS, foreach=foreach)
    for step in range(1, STEPS + 1):
        for parameter, gradient in zip(parameters, gradients(step, dtype, parameters[0].device.type)):
            parameter.grad = gradient.to(parameter.dtype) * grad_scale
        optimizer.step()
        for teacher, parameter in zip(state["teacher"], parameters):
            if teacher is not None:
                teacher.mul_(momentum).add_(parameter.detach(), alpha=1 - momentum)
    for copies, sources in (("student_copies", parameters), ("teacher_copies", state["teacher"])):
        for low, source in zip(state[copies], sources):
            if low is not None:
                low.copy_(source)
    state["exp_avg"] = [optimizer.state[p]["exp_avg"] for p in parameters]
    state["exp_avg_sq"] = [optimizer.state[p]["exp_avg_sq"] for p in parameters]
    return state


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors if tensor is not None])


def same_bits(first, second):
    return all(
        (a is None and b is None) or torch.equal(a, b) for name in first for a, b in zip(first[name], second[name])
    )


@pytest.mark.parametrize("grad_scale", [1.0, 0.37])
def test_reference_equals_torch_adamw_to_the_bit(grad_scale):
    ours = advance(make(), "reference", grad_scale=grad_scale)
    theirs = plain_torch(make(), foreach=False, grad_scale=grad_scale)
    for name in ("parameters", "exp_avg", "exp_avg_sq", "student_copies"):
        assert same_bits({name: ours[name]}, {name: theirs[name]}), name


@pytest.mark.parametrize("scale_on_device", [False, True])
@pytest.mark.parametrize("grad_scale", [1.0, 0.37])
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, gradient_dtype, grad_scale, scale_on_device):
    exact = advance(make(torch.float64, device), "reference", dtype=gradient_dtype, grad_scale=grad_scale)
    eager = plain_torch(make(device=device), foreach=False, dtype=gradient_dtype, grad_scale=grad_scale)
    scale = torch.tensor([grad_scale], device=device) if scale_on_device else grad_scale
    with poisoned_memory():
        actual = advance(make(device=device), impl, dtype=gradient_dtype, grad_scale=scale)
    for name in MASTERS:
        # one tensor after another would leave the small ones to luck
        mine, plain, true = (flat(state[name]) for state in (actual, eager, exact))
        require_close(name, mine, true, [size(plain.double() - true)], factor=VALUE_FACTOR)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_copies_are_the_rounded_masters(device, impl):
    state = advance(make(device=device), impl)
    for copies, masters in (("student_copies", "parameters"), ("teacher_copies", "teacher")):
        pairs = [(low, master) for low, master in zip(state[copies], state[masters]) if low is not None]
        assert pairs and all(torch.equal(low, master.to(torch.bfloat16)) for low, master in pairs)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_a_teacher_equal_to_the_student_stays_equal_to_the_bit(device, impl, momentum):
    state = make(device=device)
    state["teacher"] = [p.clone() for p in state["parameters"]]
    advance(state, impl, lr=0.0, momentum=momentum)
    assert same_bits({"teacher": state["teacher"]}, {"teacher": state["parameters"]})


@pytest.mark.parametrize("device, impl", IMPLS)
def test_momentum_one_freezes_the_teacher_and_zero_copies_the_student(device, impl):
    frozen, before = make(device=device), make(device=device)
    advance(frozen, impl, momentum=1.0)
    assert same_bits({"teacher": frozen["teacher"]}, {"teacher": before["teacher"]})
    followed = advance(make(device=device), impl, momentum=0.0)
    for teacher, student in zip(followed["teacher"], followed["parameters"]):
        if teacher is not None:
            # one subtraction and one addition, each rounded
            torch.testing.assert_close(teacher, student, rtol=0, atol=4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_the_teacher_follows_this_step_s_student(device, impl):
    """Teacher 0, student moved by the step to -lr: the teacher goes to half of that, not of the old 0."""
    state = {name: [torch.zeros(1, device=device)] for name in MASTERS}
    options = SETTINGS | {"weight_decay": [0.0], "momentum": 0.5, "step": 1}
    adamw_ema(**state, gradients=[torch.ones(1, device=device)], impl=impl, **options)
    assert state["parameters"][0].item() == pytest.approx(-1.5e-3, rel=1e-6)
    assert state["teacher"][0].item() == pytest.approx(-0.75e-3, rel=1e-6)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_state_goes_on_in_torch_adamw(device, impl):
    """Three steps here and two there equal five steps here, within the rounding of the two."""
    whole = advance(make(device=device, teacher=False), impl)
    start = advance(make(device=device, teacher=False), impl, steps=3)
    groups = [{"params": [p], "weight_decay": wd} for p, wd in zip(start["parameters"], WEIGHT_DECAY)]
    optimizer = torch.optim.AdamW(groups, **SETTINGS)
    saved = optimizer.state_dict()
    saved["state"] = {
        i: {"step": torch.tensor(3.0), "exp_avg": start["exp_avg"][i], "exp_avg_sq": start["exp_avg_sq"][i]}
        for i in range(len(SHAPES))
    }
    optimizer.load_state_dict(saved)
    for step in (4, 5):
        for parameter, gradient in zip(start["parameters"], gradients(step, device=device)):
            parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close(start["parameters"], whole["parameters"])


@pytest.mark.parametrize("device, impl", IMPLS)
def test_without_a_teacher_the_student_is_the_same(device, impl):
    alone, followed = advance(make(device=device, teacher=False), impl), advance(make(device=device), impl)
    assert same_bits(alone, {name: followed[name] for name in alone})


@pytest.mark.parametrize("device, impl", IMPLS)
def test_repeats_to_the_bit(device, impl):
    state = make(device=device)
    assert same_bits(advance(copy.deepcopy(state), impl), advance(state, impl))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_parameters_that_require_a_gradient(device, impl):
    state = make(device=device)
    state["parameters"] = [p.requires_grad_() for p in state["parameters"]]
    advance(state, impl)
    assert all(p.is_leaf and p.requires_grad for p in state["parameters"])
    assert not any(t is not None and t.requires_grad for t in state["teacher"])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"exp_avg": []}, ValueError, "exp_avg has 0 entries for 1 parameters"),
        ({"weight_decay": [0.1, 0.1]}, ValueError, "weight_decay has 2 entries for 1 parameters"),
        ({"step": 0}, ValueError, "step counts updates from 1, not 0"),
        (
            {"gradients": [torch.zeros(3)]},
            ValueError,
            r"gradients\[0\] must be its parameter's shape = \[4\]",
        ),
        ({"parameters": [torch.zeros(4).bfloat16()]}, TypeError, r"parameters\[0\] must be torch.float32"),
        ({"exp_avg": [torch.zeros(4).double()]}, TypeError, r"exp_avg\[0\] must be torch.float32"),
        ({"gradients": [torch.zeros(4).int()]}, TypeError, r"gradients\[0\] must be floating point"),
        ({"exp_avg_sq": [torch.zeros(8)[::2]]}, ValueError, r"exp_avg_sq\[0\] must be contiguous"),
        ({"teacher": [torch.zeros(4)]}, ValueError, r"a teacher needs a momentum in \[0, 1\], not None"),
        ({"teacher": [torch.zeros(4)], "momentum": 1.5}, ValueError, "momentum in .* not 1.5"),
        ({"teacher_copies": [torch.zeros(4)]}, ValueError, r"teacher_copies\[0\] has no teacher"),
        ({"exp_avg": [torch.zeros(4, device="meta")]}, ValueError, r"exp_avg\[0\] is on meta"),
        ({"grad_scale": torch.ones(1, device="meta")}, ValueError, "grad_scale is on meta"),
        ({"grad_scale": torch.ones(2)}, ValueError, "grad_scale must have one element"),
    ],
)
def test_bad_input_is_named(change, error, message):
    state = {name: [torch.zeros(4)] for name in ("parameters", "gradients", "exp_avg", "exp_avg_sq")}
    options = SETTINGS | {"weight_decay": [0.1], "step": 1}
    with pytest.raises(error, match=f"adamw_ema: .*{message}"):
        adamw_ema(**(state | options | change))


def test_no_parameters():
    with pytest.raises(ValueError, match="adamw_ema: no parameters"):
        adamw_ema([], [], [], [], step=1, weight_decay=[], **SETTINGS)
