"""Run by test_adamw_ema_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

from functools import partial

import torch

from misplace.kernels.adamw_ema import AdamWTensors, update
from misplace.kernels.testing.optimizer_states import (
    MASTERS,
    SETTINGS,
    advance_with,
    flat,
    gradients,
    make,
    on_device,
    same_bits,
)
from misplace.kernels.testing.poison import poisoned_memory
from misplace.kernels.testing.shapes import offset
from misplace.kernels.testing.tolerance import VALUE_FACTOR, require_close, size

STEPS = 2
ours, reference = partial(update, impl="triton"), partial(update, impl="reference")


def truncated(master):
    """The interpreter narrows by cutting bits off, where a GPU rounds to nearest."""
    return (master.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


def require_copies(state) -> None:
    for copies, masters in (("student_copies", "parameters"), ("teacher_copies", "teacher")):
        for low, master in zip(state[copies], state[masters], strict=True):
            assert low is None or torch.equal(low, truncated(master))


def against_fp64(dtype, changes, *, scalars_on_device: bool) -> None:
    options = dict(steps=STEPS, dtype=dtype) | changes
    exact, plain = (advance_with(make(wide), reference, **options) for wide in (torch.float64, torch.float32))
    with poisoned_memory():
        state = advance_with(make(), on_device(ours) if scalars_on_device else ours, **options)
    for name in MASTERS:
        mine, eager, true = (flat(each[name]) for each in (state, plain, exact))
        require_close(name, mine, true, [size(eager.double() - true)], factor=VALUE_FACTOR)
    require_copies(state)
    print("close", dtype, changes, scalars_on_device, flush=True)


def moved_tensors() -> None:
    """Other gradients, none at all, and addresses off the 16 bytes: the table follows."""
    state = make()
    shifted = {name: [None if t is None else offset(t) for t in tensors] for name, tensors in make().items()}
    decays = [0.1] * len(state["parameters"])
    for each in (state, shifted):
        tensors = AdamWTensors(**each, weight_decay=decays)
        for step in (1, 2):
            given = [None if i == step else g for i, g in enumerate(gradients(step))]
            ours(tensors, given, step=step, momentum=0.9, **SETTINGS)
    assert same_bits(state, shifted)
    assert not same_bits(state, make())
    print("moved", flush=True)


def not_finite() -> None:
    """found_inf on the device: nothing is written, whatever the gradients are."""
    state = make()
    bad = [torch.full_like(g, float("nan")) for g in gradients(1)]
    tensors = AdamWTensors(**state, weight_decay=[0.1] * len(state["parameters"]))
    ours(tensors, bad, step=1, momentum=0.5, found_inf=torch.ones(()), **SETTINGS)
    assert same_bits(state, make())
    print("unwritten", flush=True)


def frozen_tables() -> None:
    """What a CUDA graph reads is never rewritten: a later step brings its own table."""
    state, other = make(), make()
    decays = [0.1] * len(state["parameters"])
    tensors, plain = (AdamWTensors(**each, weight_decay=decays) for each in (state, other))
    held = [gradients(step) for step in (1, 2)]  # both alive, so that the second lies elsewhere
    for step in (1, 2):
        for each in (tensors, plain):
            ours(each, held[step - 1], step=step, momentum=0.9, **SETTINGS)
        key, _, table = tensors.addresses
        key[-1] = 1
        if step == 1:
            seen = table.clone()
    assert torch.equal(table, seen)
    assert same_bits(state, other)
    print("frozen", flush=True)


def opcheck() -> None:
    tensors = AdamWTensors(**make(shapes=[(5,), (2, 3)]), weight_decay=[0.1, 0.0])
    given = [torch.ones(5), None]
    ours(tensors, given, step=1, momentum=0.9, **SETTINGS)
    arguments = (tensors.state, tensors.slots, given, tensors.weight_decay, [1.0] * 6, [None] * 6, 0.9, 0.999, 1e-8)
    # tracing calls the kernel on other memory, which only a GPU can compare
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.misplace.adamw_ema_triton.default, (*arguments, *tensors.addresses), test_utils=checks
    )
    print("opcheck passed", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    against_fp64(torch.float32, {}, scalars_on_device=False)
    against_fp64(torch.bfloat16, {"grad_scale": 0.37}, scalars_on_device=False)
    against_fp64(torch.float16, {"grad_scale": 0.37, "decay_scale": 3.0}, scalars_on_device=True)
    against_fp64(torch.float32, {"momentum": 0.25, "betas": (0.0, 0.95)}, scalars_on_device=True)
    twice = [advance_with(make(), ours, steps=1) for _ in range(2)]
    assert same_bits(*twice)
    print("equal", flush=True)
    moved_tensors()
    not_finite()
    frozen_tables()
    opcheck()


if __name__ == "__main__":
    main()
