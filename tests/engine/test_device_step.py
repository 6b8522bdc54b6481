"""The step without host synchronisation, on the CPU: today's bits, nothing read in between, nothing bad written."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from misplace.engine.data import make_loader, open_source
from misplace.engine.device_step import StepInput, device_step
from misplace.engine.frameworks import FRAMEWORKS
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method, build_optimizer
from misplace.engine.optim import StepNumbers
from misplace.engine.state import state_tensors
from misplace.engine.step import NonFiniteError, student_plan, training_step
from misplace.engine.step_queue import StepQueue

STEPS = 8
CPU = torch.device("cpu")
# whose result has a shape, or is a number, that only the host's look at the data can tell
READING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal"}


def build(config):
    source = open_source(config.data.source)
    impls = resolve_implementations(CPU, config.run.impl)
    method = build_method(config, source, impls)
    data = config.data
    loader = make_loader(
        source,
        batch_size=data.batch_size,
        num_views=FRAMEWORKS[type(config.framework)].num_views,
        image_size=config.model.image_size,
        augment=data.augment,
        seed=config.run.seed,
    )
    return method, build_optimizer(method, config, impls), loader


def timing(step):
    return {"progress": (step + 1) / (STEPS + 1), "next_progress": lambda: (step + 2) / (STEPS + 1)}


def everything(method, optimizer):
    """A checkpoint's tensors and the low-precision copies."""
    copies = {f"copy.{i}": low for i, low in enumerate(optimizer.copies.values())}
    return {name: tensor.clone() for name, tensor in (state_tensors(method, optimizer) | copies).items()}


def differing(first, second):
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {}, {"impl": "reference"}, {"impl": "adamw_ema=torch"}])
@pytest.mark.parametrize("recipe", ["moco_v3_dilemma", "moco_v3", "dino_dilemma", "simclr_dilemma", "mae_dilemma"])
def test_it_is_todays_step_to_the_bit(runs, images, tmp_path, recipe, changes):
    config = runs.tiny_config(recipe, images, tmp_path, **changes)
    method, optimizer, batches = build(config)
    other, its_optimizer, _ = build(config)
    queue = StepQueue(other, its_optimizer, config, captured=False)
    for step, batch in zip(range(STEPS), batches):
        expected = training_step(method, optimizer, batch, config, **timing(step))
        actual = queue.launch(batch, step, **timing(step)).result()
        for ours, theirs in zip(actual.detection or (), expected.detection or (), strict=True):
            assert torch.equal(ours, theirs)
        expected.detection = actual.detection = None
        assert actual == expected, step
    state = everything(method, optimizer)
    assert differing(everything(other, its_optimizer), state) == [] and state["optimizer.steps"] == STEPS


def test_clipping_divides_to_the_same_bits(runs, images, tmp_path):
    """The factor that a tensor gives and the one that a number gives, where it clips and where it does not."""
    config = runs.tiny_config("moco_v3", images, tmp_path)
    _, optimizer, _ = build(config)
    optimizer.config = dataclasses.replace(config.optim, clip_norm=0.7)
    norms = torch.rand(1000) * 2
    by_number = [optimizer._grad_scale(norm) for norm in norms.tolist()]
    assert [optimizer._grad_scale(norm).item() for norm in norms] == by_number
    assert min(by_number) < 1 and max(by_number) == 1


class Reading(TorchDispatchMode):
    """The operators called inside that read from the device."""

    def __init__(self):
        super().__init__()
        self.found, self.calls = [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls += 1
        if operator.overloadpacket.__name__ in READING:
            self.found.append(str(operator))
        return operator(*args, **(kwargs or {}))


def fixed_input(method, batch, config):
    plan = student_plan(method, batch, config.run.seed)
    return StepInput(batch.views, plan, torch.tensor([1.0, 1.0, 1e-3, 0.99, 1.0], dtype=torch.float64))


# token_bce and info_nce read their scale on the CPU alone (their autograd.py)
@pytest.mark.parametrize("impl", ["token_bce=reference,info_nce=reference"])
def test_nothing_is_read_between_input_and_update(runs, images, tmp_path, impl):
    config = runs.tiny_config("moco_v3_dilemma", images, tmp_path, impl=impl, precision="bf16")
    method, optimizer, batches = build(config)
    given, found_inf = fixed_input(method, next(batches), config), torch.zeros(())
    assert given.numbers.shape == (len(StepNumbers._fields),)
    with Reading() as reading:
        device_step(method, optimizer, given, found_inf)
    assert reading.found == [] and reading.calls > 100
    with Reading() as reading:  # today's, which is read at once: what is looked for would be seen
        training_step(method, optimizer, next(batches), config, **timing(0))
    assert reading.found


@pytest.mark.parametrize("impl", ["", "adamw_ema=torch", "adamw_ema=reference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_bad_step_and_those_after_it_write_nothing(runs, images, tmp_path, impl, bad, place):
    config = runs.tiny_config("moco_v3_dilemma", images, tmp_path, impl=impl, precision="bf16")
    method, optimizer, batches = build(config)
    queue = StepQueue(method, optimizer, config, captured=False)
    queue.launch(next(batches), 0, **timing(0)).result()
    before = everything(method, optimizer)
    real = method.framework.losses
    if place == "loss":
        method.framework.losses = lambda *a: {name: term * bad for name, term in real(*a).items()}
    else:
        handle = method.framework.projector[0].weight.register_hook(lambda g: g * bad)
    first = queue.launch(next(batches), 1, **timing(1))
    if place == "loss":
        method.framework.losses = real
    else:
        handle.remove()
    queue.launch(next(batches), 2, **timing(2))  # finite by itself
    after = everything(method, optimizer)
    assert after.pop("optimizer.steps") == before.pop("optimizer.steps") + 2
    written = [name for name in differing(after, before) if "running_" not in name and "num_batches" not in name]
    assert written == []
    with pytest.raises(NonFiniteError, match=r"(loss|gradient norm) is -?(nan|inf) \(contrastive="):
        first.result()
