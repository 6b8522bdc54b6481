"""A recorded call again, ours and another implementation taking turns on the same tensors."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from misplace import kernels
from misplace.kernels import ImplUnavailableError

from .. import timing
from .cost import Cost, backward_bytes, count_operations, forward_bytes, kept_share
from .record import Example, Site


class Replayed(NamedTuple):
    """One direction of a call. against_ms is None where the other implementation cannot run, `why_not` says why."""

    ms: float
    against_ms: float | None
    ratio: float | None  # against / ours, median over the rounds in which they took turns
    cost: Cost
    why_not: str = ""


class Call:
    """One implementation of a recorded call."""

    def __init__(self, site: Site, example: Example, impl: str):
        self._op = getattr(kernels, site.op)
        # an op in place gets tensors of its own
        arguments = example.arguments if example.outputs else copy.deepcopy(example.arguments)
        self._arguments = {**arguments, "impl": impl}
        self._wanted = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.requires_grad]

    @property
    def has_backward(self) -> bool:
        return bool(self._wanted)

    def forward(self) -> Any:
        with torch.set_grad_enabled(self.has_backward):
            return self._op(**self._arguments)

    def backward(self) -> Callable[[], Any]:
        """A function that runs the backward of one forward, as often as it is called."""
        roots = [out for out in tree_leaves(self.forward()) if isinstance(out, Tensor) and out.requires_grad]
        cotangents = [torch.randn_like(root) for root in roots]
        return lambda: torch.autograd.grad(roots, self._wanted, cotangents, retain_graph=True, allow_unused=True)


def replay(site: Site, example: Example, against: str, device: torch.device, rounds: int) -> dict[str, Replayed]:
    """{"forward": ..., "backward": ...}, the second where the call had one."""
    ours = Call(site, example, site.impl)
    reference = Call(site, example, "reference")
    share = kept_share(site.op, example.arguments)
    operations = {"forward": count_operations(reference.forward)}
    least = {"forward": forward_bytes(site.op, example)}
    if ours.has_backward:
        operations["backward"] = count_operations(reference.backward())
        least["backward"] = backward_bytes(site.op, example)
    del reference
    return {
        direction: _compared(
            site,
            ours,
            example,
            direction,
            against,
            Cost(bytes_moved, round(operations[direction] * share)),
            device,
            rounds,
        )
        for direction, bytes_moved in least.items()
    }


def _compared(
    site: Site,
    ours: Call,
    example: Example,
    direction: str,
    against: str,
    cost: Cost,
    device: torch.device,
    rounds: int,
) -> Replayed:
    run = _thunk(ours, direction)
    if site.impl == against:
        ms = timing.spread(timing.interleave({"ours": run}, device, rounds=rounds)["ours"]).p50
        return Replayed(ms, ms, 1.0, cost)
    try:
        kernels.resolve_impl(kernels.OP_OF[site.op], against, device)
        other = _thunk(Call(site, example, against), direction)
        compared = timing.compare(run, other, device, rounds=rounds)
    except (ImplUnavailableError, torch.OutOfMemoryError) as error:
        ms = timing.spread(timing.interleave({"ours": run}, device, rounds=rounds)["ours"]).p50
        return Replayed(ms, None, None, cost, str(error).partition("\n")[0])
    return Replayed(compared.ours.p50, compared.against.p50, compared.ratio, cost)


def _thunk(call: Call, direction: str) -> Callable[[], Any]:
    return call.forward if direction == "forward" else call.backward()
