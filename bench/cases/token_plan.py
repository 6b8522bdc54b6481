"""token_plan: bits equal to the reference; least traffic is the index in and src, pos, wrong out."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import token_plan

from .. import peers
from ..peers.token_plan import eager_plan
from ..registry import Case, Check, Thunk

WRONG_RATE = 0.2
FULL = [(1024, 196, 0.75), (1024, 196, 0.5), (64, 196, 0.75)]
TINY = [(8, 36, 0.75)]


class Inputs(NamedTuple):
    index: Tensor  # int64 [B], global sample indices
    num_patches: int
    drop_rate: float

    @property
    def num_kept(self) -> int:
        return _num_kept(self.num_patches, self.drop_rate)


def _num_kept(num_patches: int, drop_rate: float) -> int:
    return int(num_patches * (1 - drop_rate) + 1e-6)


def _inputs(batch: int, num_patches: int, drop_rate: float, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(2**40, (batch,), generator=generator).to(device)
    return Inputs(index, num_patches, drop_rate)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return partial(
        token_plan,
        inputs.index,
        num_patches=inputs.num_patches,
        drop_rate=inputs.drop_rate,
        wrong_rate=WRONG_RATE,
        seed=1,
        epoch=2,
        view=0,
        impl=impl,
    )


def _eager(inputs: Inputs) -> Thunk:
    return partial(_run_peer, eager_plan, inputs)


def _compiled(inputs: Inputs) -> Thunk:
    return partial(_run_peer, peers.compiled(eager_plan, inputs.index.device), inputs)


def _run_peer(plan, inputs: Inputs):
    return plan(len(inputs.index), inputs.num_patches, inputs.num_kept, WRONG_RATE, inputs.index.device)


def _check(inputs: Inputs, impl: str) -> Check:
    expected, actual = _ours(inputs, "reference")(), _ours(inputs, impl)()
    differing = sum(int((a != b).sum()) for a, b in zip(actual, expected, strict=True))
    return Check(error=float(differing), bound=0.0)


def cases(*, tiny: bool) -> list[Case]:
    return [
        Case(
            op="token_plan",
            mode="forward",
            shape=f"B={batch} L={num_patches} drop={drop_rate}",
            dtype="int32",
            make_inputs=partial(_inputs, batch, num_patches, drop_rate),
            ours=_ours,
            peers={"eager": _eager, "compile": _compiled},
            check=_check,
            bytes_moved=batch * (8 + _num_kept(num_patches, drop_rate) * (4 + 4 + 1)),
        )
        for batch, num_patches, drop_rate in (TINY if tiny else FULL)
    ]
