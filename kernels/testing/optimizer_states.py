"""States of an optimiser with an EMA teacher and copies, and steps of adamw_ema over them."""

import functools

import torch
from torch import Tensor

from ..adamw_ema import AdamWTensors, adamw_ema, update
from .inputs import normal

# a matrix, a scalar, primes, a multiple of every vector width and its neighbours, nothing, more than one piece
SHAPES = [(192, 37), (), (1,), (13,), (2, 3, 5), (1024,), (1023,), (0, 4), (2049,)]
WEIGHT_DECAY = [0.1, 0.0, 0.0, 0.1, 0.04, 0.1, 0.0, 0.1, 0.1]
SETTINGS = {"lr": 1.5e-3, "betas": (0.9, 0.999), "eps": 1e-8}
STEPS = 5
MASTERS = ("parameters", "exp_avg", "exp_avg_sq", "teacher")

State = dict[str, list[Tensor | None]]


@functools.cache
def _drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return normal(*shape, seed=seed)


def drawn(shapes, seed: int, dtype=torch.float32, device="cpu") -> list[Tensor]:
    """Normal numbers, fp32 (or fewer bits) whatever the dtype; every call has its own memory."""
    return [_drawn(tuple(shape), seed + i).to(device, dtype, copy=True) for i, shape in enumerate(shapes)]


def make(dtype=torch.float32, device="cpu", shapes=SHAPES, teacher=True) -> State:
    """State before the first step; every third tensor has no teacher, every second no copies."""
    parameters = drawn(shapes, 0, dtype, device)
    state = {
        "parameters": parameters,
        "exp_avg": [torch.zeros_like(p) for p in parameters],
        "exp_avg_sq": [torch.zeros_like(p) for p in parameters],
    }
    if teacher:
        teachers = drawn(shapes, 100, dtype, device)
        state["teacher"] = [None if i % 3 == 2 else tensor for i, tensor in enumerate(teachers)]
        for copies, masters in (("student_copies", parameters), ("teacher_copies", state["teacher"])):
            state[copies] = [
                None if master is None or i % 2 else torch.zeros_like(master, dtype=torch.bfloat16)
                for i, master in enumerate(masters)
            ]
    return state


def gradients(step: int, dtype=torch.float32, device="cpu", shapes=SHAPES) -> list[Tensor]:
    return drawn(shapes, 1000 * step, dtype, device)


def advance(state: State, impl: str, *, steps=STEPS, dtype=torch.float32, momentum=0.99, **changes) -> State:
    """`steps` steps from the first, each as a caller without AdamWTensors takes it."""
    shapes, device = [tuple(p.shape) for p in state["parameters"]], state["parameters"][0].device.type
    options = SETTINGS | {"weight_decay": WEIGHT_DECAY[: len(shapes)]} | changes
    if "teacher" in state:
        options["momentum"] = momentum
    for step in range(1, steps + 1):
        adamw_ema(**state, gradients=gradients(step, dtype, device, shapes), step=step, impl=impl, **options)
    return state


def advance_with(state: State, run, *, steps=STEPS, dtype=torch.float32, **changes) -> State:
    """The same over AdamWTensors made once; run(tensors, gradients, **options) takes a step."""
    shapes, device = [tuple(p.shape) for p in state["parameters"]], state["parameters"][0].device.type
    tensors = AdamWTensors(**state, weight_decay=WEIGHT_DECAY[: len(shapes)])
    options = SETTINGS | {"momentum": 0.99} | changes
    for step in range(1, steps + 1):
        run(tensors, gradients(step, dtype, device, shapes), step=step, **options)
    return state


def on_device(run=update):
    """`run` with every scalar of a step in a tensor."""

    def with_tensors(tensors, gradients, **options):
        device = tensors.device
        dtypes = {"step": torch.int64, "lr": torch.float64}
        for name in ("step", "lr", "decay_scale", "grad_scale", "momentum", "found_inf"):
            value = options.get(name, 0.0 if name == "found_inf" else 1.0)
            options[name] = torch.tensor([value], dtype=dtypes.get(name, torch.float32), device=device)
        run(tensors, gradients, **options)

    return with_tensors


def flat(tensors: list[Tensor | None]) -> Tensor:
    """One vector: one tensor after another would leave the small ones to luck."""
    return torch.cat([tensor.flatten() for tensor in tensors if tensor is not None])


def same_bits(first: State, second: State, names=None) -> bool:
    """Every tensor of `names` (all of `first`) is equal in both."""
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for name in names or first
        for a, b in zip(first[name], second[name], strict=True)
    )
