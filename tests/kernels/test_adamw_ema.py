import copy
from functools import partial

import pytest
import torch

from misplace.kernels import adamw_ema
from misplace.kernels.adamw_ema import SUPPORTED, AdamWTensors, update
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.optimizer_states import (
    MASTERS,
    SETTINGS,
    SHAPES,
    STEPS,
    WEIGHT_DECAY,
    advance,
    advance_with,
    flat,
    gradients,
    make,
    on_device,
    same_bits,
)
from misplace.kernels.testing.poison import poisoned_memory
from misplace.kernels.testing.shapes import LAYOUTS, offset
from misplace.kernels.testing.tolerance import VALUE_FACTOR, require_close, size

IMPLS = runnable(SUPPORTED)


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


@pytest.mark.parametrize("grad_scale", [1.0, 0.37])
def test_reference_equals_torch_adamw_to_the_bit(grad_scale):
    ours = advance(make(), "reference", grad_scale=grad_scale)
    theirs = plain_torch(make(), foreach=False, grad_scale=grad_scale)
    for name in ("parameters", "exp_avg", "exp_avg_sq", "student_copies"):
        assert same_bits(ours, theirs, [name]), name


@pytest.mark.parametrize("scale_on_device", [False, True])
@pytest.mark.parametrize("grad_scale", [1.0, 0.37])
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, gradient_dtype, grad_scale, scale_on_device):
    exact = advance(make(torch.float64, device), "reference", dtype=gradient_dtype, grad_scale=grad_scale)
    eager = plain_torch(make(device=device), foreach=False, dtype=gradient_dtype, grad_scale=grad_scale)
    scale = torch.tensor([grad_scale], device=device) if scale_on_device else grad_scale
    with poisoned_memory():
        actual = advance(make(device=device), impl, dtype=gradient_dtype, grad_scale=scale)
    for name in MASTERS:
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
    assert same_bits(frozen, before, ["teacher"])
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
def test_tensors_made_once_serve_every_step(device, impl):
    again = advance_with(make(device=device), partial(update, impl=impl))
    assert same_bits(advance(make(device=device), impl), again)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_scalars_in_tensors(device, impl):
    """Within the tolerance of the numbers; the same bits where nothing but the place of the scalars differs."""
    changes = {"grad_scale": 0.5, "decay_scale": 2.0, "momentum": 0.75, "lr": 2**-9}
    numbers = advance_with(make(device=device), partial(update, impl=impl), **changes)
    tensors = advance_with(make(device=device), on_device(partial(update, impl=impl)), **changes)
    if device == "cpu":
        assert same_bits(numbers, tensors)
        return
    exact = advance_with(make(torch.float64, device), partial(update, impl="reference"), **changes)
    for name in MASTERS:
        mine, plain, true = (flat(state[name]) for state in (tensors, numbers, exact))
        require_close(name, mine, true, [size(plain.double() - true)], factor=VALUE_FACTOR)


@pytest.mark.parametrize("found_inf", [1.0, 7, float("nan"), True])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_where_something_was_not_finite_nothing_changes(device, impl, found_inf):
    """Not even where the gradients themselves are bad; as a number and as a tensor."""
    state, before = make(device=device), make(device=device)
    bad = [torch.full_like(g, float("inf")) for g in gradients(1, device=device)]
    tensors = AdamWTensors(**state, weight_decay=WEIGHT_DECAY)
    for flag in (found_inf, torch.tensor(float(found_inf), device=device)):
        update(tensors, bad, step=1, **SETTINGS, momentum=0.5, found_inf=flag, impl=impl)
        assert same_bits(state, before)
    for flag in (0.0, torch.tensor([0.0], device=device)):
        update(tensors, gradients(1, device=device), step=1, **SETTINGS, momentum=0.5, found_inf=flag, impl=impl)
    assert not same_bits(state, before)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_decay_scale_multiplies_every_decay(device, impl):
    scaled = advance(make(device=device), impl, decay_scale=0.25)
    decays = [decay * 0.25 for decay in WEIGHT_DECAY]
    assert same_bits(scaled, advance(make(device=device), impl, weight_decay=decays))
    assert not same_bits(scaled, advance(make(device=device), impl))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_without_a_gradient_nothing_of_a_tensor_changes(device, impl):
    state, before, whole = make(device=device), make(device=device), make(device=device)
    given = gradients(1, device=device)
    options = SETTINGS | {"step": 1, "weight_decay": WEIGHT_DECAY, "momentum": 0.9, "impl": impl}
    adamw_ema(**state, gradients=[None if i in (0, 3, 8) else g for i, g in enumerate(given)], **options)
    adamw_ema(**whole, gradients=given, **options)
    for name in state:
        for i, (now, then, moved) in enumerate(zip(state[name], before[name], whole[name], strict=True)):
            assert now is None or torch.equal(now, then if i in (0, 3, 8) else moved), (name, i)
    adamw_ema(**state, gradients=[None] * len(given), **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_layouts_of_gradients_and_of_memory(device, impl, layout):
    dense, other = make(device=device), make(device=device)
    options = SETTINGS | {"step": 1, "weight_decay": WEIGHT_DECAY, "momentum": 0.9, "impl": impl}
    given = [LAYOUTS[layout](g) if g.dim() > 1 else g for g in gradients(1, device=device)]
    if layout == "offset":
        other = {name: [None if t is None else offset(t) for t in tensors] for name, tensors in other.items()}
    adamw_ema(**dense, gradients=gradients(1, device=device), **options)
    adamw_ema(**other, gradients=given, **options)
    assert same_bits(dense, other)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_autograd_sees_that_parameters_were_written(device, impl):
    state = make(device=device)
    before = [p._version for p in state["parameters"]]
    advance(state, impl, steps=1)
    after = [p._version for p in state["parameters"]]
    assert all(b > a for a, b, p in zip(before, after, state["parameters"]) if p.numel())


@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] in ("native", "triton")])
def test_compiles_whole(device, impl):
    def step(state, gradients, lr):
        adamw_ema(
            **state, gradients=gradients, step=1, weight_decay=WEIGHT_DECAY, impl=impl, momentum=0.9,
            **SETTINGS | {"lr": lr},
        )  # fmt: skip
        return state["parameters"][0] * 2

    torch.compiler.reset()
    eager, compiled = make(device=device), make(device=device)
    captured = torch.compile(step, backend="aot_eager", fullgraph=True)
    for lr in (torch.tensor(1e-3, device=device), torch.tensor(2e-3, device=device)):
        expected, actual = (run(s, gradients(1, device=device), lr) for run, s in ((step, eager), (captured, compiled)))
        assert torch.equal(expected, actual) and same_bits(eager, compiled)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_parameters_that_require_a_gradient(device, impl):
    state = make(device=device)
    state["parameters"] = [p.requires_grad_() for p in state["parameters"]]
    advance(state, impl)
    assert all(p.is_leaf and p.requires_grad for p in state["parameters"])
    assert not any(t is not None and t.requires_grad for t in state["teacher"])
