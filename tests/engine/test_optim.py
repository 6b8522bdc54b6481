"""AdamWEMA against torch.optim.AdamW: a run goes over from one to the other and back, step for step."""

import pytest
import torch
from torch import nn

from misplace.engine.optim import AdamWEMA, OptimConfig, StepNumbers

SHAPES = [(37, 5), (5,), (2, 3, 4)]
LR = 1e-3
CONFIG = OptimConfig(base_lr=LR, weight_decay=0.05, betas=(0.9, 0.95), eps=1e-6)


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def ours(trained, config=CONFIG, impl="auto"):
    return AdamWEMA([(f"p{i}", p) for i, p in enumerate(trained)], config, {}, {}, impl=impl)


def theirs(trained, **changes):
    settings = {"lr": LR, "betas": CONFIG.betas, "eps": CONFIG.eps, "weight_decay": CONFIG.weight_decay}
    return torch.optim.AdamW(trained, **settings | {"foreach": False} | changes)


def update(optimizer, *, grad_norm=1.0, holds_late=False, decay_scale=1.0):
    counts = optimizer.count_step(holds_late=holds_late)
    optimizer.step(StepNumbers(*counts, lr=LR, momentum=1.0, decay_scale=decay_scale), grad_norm=grad_norm)


def advance(optimizer, trained, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in trained:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if isinstance(optimizer, AdamWEMA):
            update(optimizer)
        else:
            optimizer.step()
    return trained


def same(first, second):
    """To the bit: the reference rounds as torch.optim.AdamW does."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("before", [0, 3])
def test_a_state_of_torch_goes_on_here(before):
    there, here = parameters(), parameters()
    optimizer = theirs(there)
    advance(optimizer, there, range(before))
    with torch.no_grad():
        torch._foreach_copy_(here, there)
    follower = ours(here, impl="reference")
    follower.load_adamw_state_dict(optimizer.state_dict())
    assert follower.steps == before
    steps = range(before, before + 3)
    assert same(advance(follower, here, steps), advance(optimizer, there, steps))


@pytest.mark.parametrize("before", [0, 3])
def test_a_state_of_ours_goes_on_in_torch(before):
    here, there = parameters(), parameters()
    optimizer = ours(here, impl="reference")
    advance(optimizer, here, range(before))
    with torch.no_grad():
        torch._foreach_copy_(there, here)
    follower = theirs(there)
    follower.load_state_dict(optimizer.to_adamw_state_dict())
    follower.param_groups[0]["foreach"] = False
    steps = range(before, before + 3)
    assert same(advance(follower, there, steps), advance(optimizer, here, steps))


def test_there_and_back_is_the_same_state():
    trained = advance(optimizer := ours(parameters()), optimizer.parameters, range(2))
    saved = optimizer.to_adamw_state_dict(lr=0.5)
    assert saved["param_groups"][0]["lr"] == 0.5
    assert saved["state"][0]["exp_avg"].data_ptr() != optimizer.exp_avg[0].data_ptr()
    other = ours([nn.Parameter(p.detach().clone()) for p in trained])
    other.load_adamw_state_dict(saved)
    assert same(other.exp_avg + other.exp_avg_sq, optimizer.exp_avg + optimizer.exp_avg_sq)
    assert advance(other, other.parameters, range(2, 4)) is other.parameters
    assert same(other.parameters, advance(optimizer, trained, range(2, 4)))


def test_groups_count_their_parameters_in_a_row():
    there = parameters()
    optimizer = theirs([{"params": there[:1]}, {"params": there[1:]}])
    advance(optimizer, there, range(2))
    follower = ours(parameters())
    follower.load_adamw_state_dict(optimizer.state_dict())
    assert same(follower.exp_avg, [optimizer.state[p]["exp_avg"] for p in there])


def skipping(trained):
    """An AdamW one of whose parameters had no gradient in its first step."""
    optimizer = theirs(trained)
    for parameter in trained[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    advance(optimizer, trained, [0])
    return optimizer


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: theirs(p[:2]), "of 2 parameters, here are 3"),
        (lambda p: theirs(p, betas=(0.9, 0.999)), r"betas is \(0.9, 0.999\) there and \(0.9, 0.95\) here"),
        (lambda p: theirs(p, weight_decay=0.1), "weight_decay is 0.1 there and 0.05 here"),
        (lambda p: theirs(p, amsgrad=True), "amsgrad is True there and False here"),
        (lambda p: theirs(p[::-1]), r"exp_avg 0 is \[2, 3, 4\], the parameter \[37, 5\]"),
        (skipping, r"its parameters took \[2, 3\] steps"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(make, words):
    trained = parameters()
    optimizer = make(trained)
    advance(optimizer, [p for group in optimizer.param_groups for p in group["params"]], [1])
    follower = ours(parameters())
    with pytest.raises(ValueError, match=f"AdamW state: {words}"):
        follower.load_adamw_state_dict(optimizer.state_dict())
    assert follower.steps == 0 and not any(moment.any() for moment in follower.exp_avg)


def test_a_parameter_without_a_gradient_stays_and_gradients_are_freed():
    optimizer = ours(parameters())
    before = [p.detach().clone() for p in optimizer.parameters]
    optimizer.parameters[0].grad = torch.ones(SHAPES[0])
    update(optimizer)
    assert not torch.equal(optimizer.parameters[0], before[0])
    assert same(optimizer.parameters[1:], before[1:])
    assert all(p.grad is None for p in optimizer.parameters)


def test_clip_norm_scales_the_gradients():
    """A gradient of norm 10 clipped to 1 is a tenth of it: moments say so."""
    config = OptimConfig(base_lr=LR, clip_norm=1.0)
    optimizer = ours(parameters(), config)
    for parameter in optimizer.parameters:
        parameter.grad = torch.ones_like(parameter)
    norm = optimizer.grad_norm().item()
    update(optimizer, grad_norm=norm)
    expected = 0.1 / (norm + 1e-6)
    torch.testing.assert_close(optimizer.exp_avg[0], torch.full(SHAPES[0], expected))


def with_gradients(optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in optimizer.parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return optimizer


def held_optimizer(config=CONFIG):
    trained = parameters()
    named = [(f"p{i}", p) for i, p in enumerate(trained)]
    return AdamWEMA(named, config, {}, {}, late=[trained[1]]), trained


def test_late_parameters_are_held_and_then_updated_as_from_the_start():
    """As where DINO drops their gradients: torch's AdamW counts their steps from the first one they take."""
    optimizer, trained = held_optimizer()
    before = trained[1].detach().clone()
    for step in range(3):
        update(with_gradients(optimizer, step), holds_late=True)
    assert torch.equal(trained[1], before) and not torch.equal(trained[0], parameters()[0])
    for step in range(3, 6):
        update(with_gradients(optimizer, step))
    assert (optimizer.steps, optimizer.late_steps) == (6, 3)

    twin = parameters()
    other = theirs(twin)
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        order = [p for p in twin if p is not twin[1]] + [twin[1]]  # late ones come last
        for parameter in order:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if step < 3:
            twin[1].grad = None
        other.step()
    for ours_, theirs_ in zip(trained, twin, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-6, atol=1e-7)


def test_late_counts_are_in_the_state():
    optimizer, _ = held_optimizer()
    update(with_gradients(optimizer, 0), holds_late=True)
    update(with_gradients(optimizer, 1))
    other, _ = held_optimizer()
    other.load_state_tensors(optimizer.state_tensors())
    assert (other.steps, other.late_steps) == (2, 1)
    assert "late_steps" not in ours(parameters()).state_tensors()


def test_a_held_tensor_on_the_device_holds_too():
    by_number, by_tensor = held_optimizer()[0], held_optimizer()[0]
    for step in range(4):
        counts = by_number.count_step(holds_late=step < 2)
        by_number_ = StepNumbers(*counts, lr=LR, momentum=1.0, decay_scale=0.5)
        with_gradients(by_number, step).step(by_number_, grad_norm=1.0)
        tensors = StepNumbers(*(torch.tensor(float(value), dtype=torch.float64) for value in by_number_))
        with_gradients(by_tensor, step).step(tensors, grad_norm=torch.tensor(1.0), found_inf=torch.zeros(()))
    assert same(by_number.parameters, by_tensor.parameters)


def test_each_gradient_is_clipped_by_its_own_norm():
    config = OptimConfig(base_lr=LR, clip_norm=1.0, clip_each=True)
    optimizer = ours(parameters(), config)
    for i, parameter in enumerate(optimizer.parameters):
        parameter.grad = torch.full_like(parameter, 10.0 if i else 1e-4)
    update(optimizer, grad_norm=optimizer.grad_norm().item())
    small, *large = optimizer.exp_avg
    torch.testing.assert_close(small, torch.full_like(small, 0.1 * 1e-4))
    for moment in large:
        assert moment.norm().item() == pytest.approx(0.1, rel=1e-5)


def test_weight_decay_can_follow_a_schedule_and_spare_vectors():
    config = OptimConfig(base_lr=LR, weight_decay=0.04, final_weight_decay=0.4, decay_vectors=False)
    assert [config.decay_scale(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 5.5, 10.0])
    assert OptimConfig().decay_scale(0.7) == 1.0
    weight, bias, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 1)), nn.Parameter(torch.ones(4))
    optimizer = AdamWEMA([("w.weight", weight), ("w.bias", bias), ("norm", vector)], config, {}, {})
    for parameter in optimizer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    update(optimizer, decay_scale=config.decay_scale(0.5))
    torch.testing.assert_close(weight, torch.full((2, 3), 1 - LR * 0.22))
    assert same([bias, vector], [torch.ones(2, 1), torch.ones(4)])
    with pytest.raises(ValueError, match="all decay"):
        optimizer.to_adamw_state_dict()
