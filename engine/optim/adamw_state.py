"""The state of torch.optim.AdamW, read and written, so that a run can come from it and go on in it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Moments = tuple[int, list[Tensor], list[Tensor]]  # steps taken, exp_avg, exp_avg_sq
SAME = ("betas", "eps", "weight_decay", "amsgrad", "maximize")


def to_state_dict(optimizer: torch.optim.AdamW, moments: Moments) -> dict[str, Any]:
    """What load_state_dict of an AdamW like `optimizer` takes; copies, for an AdamW keeps what it loads."""
    steps, exp_avg, exp_avg_sq = moments
    state_dict = optimizer.state_dict()
    if steps:
        state_dict["state"] = {
            i: {"step": torch.tensor(float(steps)), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
            for i, (first, second) in enumerate(zip(exp_avg, exp_avg_sq, strict=True))
        }
    return state_dict


def from_state_dict(optimizer: torch.optim.AdamW, state_dict: dict[str, Any]) -> Moments:
    """The moments in a state_dict of an AdamW over the parameters of `optimizer`, in their order.

    ValueError where it is of other parameters, counted differently many steps for some of them, or differs from
    `optimizer` in anything but the learning rate that changes an update.
    """
    parameters = optimizer.param_groups[0]["params"]
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    if len(indices) != len(parameters):
        raise ValueError(f"AdamW state: of {len(indices)} parameters, here are {len(parameters)}")
    for group in state_dict["param_groups"]:
        for name in SAME:
            there, here = group[name], optimizer.param_groups[0][name]
            if (tuple(there) if name == "betas" else there) != here:
                raise ValueError(f"AdamW state: {name} is {there} there and {here} here")
    states = [state_dict["state"].get(index) for index in indices]
    counts = {0 if state is None else int(state["step"]) for state in states}
    if len(counts) > 1:
        raise ValueError(f"AdamW state: its parameters took {sorted(counts)} steps, here all take as many")
    return counts.pop(), _moment("exp_avg", states, parameters), _moment("exp_avg_sq", states, parameters)


def _moment(name: str, states: Sequence[dict[str, Tensor] | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Zeros before the first step."""
    found = [torch.zeros_like(p) if state is None else state[name] for state, p in zip(states, parameters)]
    for i, (tensor, parameter) in enumerate(zip(found, parameters)):
        if tensor.shape != parameter.shape:
            raise ValueError(f"AdamW state: {name} {i} is {list(tensor.shape)}, the parameter {list(parameter.shape)}")
    return found
