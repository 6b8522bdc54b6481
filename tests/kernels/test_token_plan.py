"""The rules of a token plan, held against a plan made by hand; every implementation gives the same bits."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misplace.kernels.impl import Impl, ImplUnavailableError
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.plans import (
    DROP_RATES,
    INDICES,
    NUM_PATCHES,
    WRONG_RATES,
    plan_by_hand,
    require_rules,
)
from misplace.kernels.testing.poison import poisoned_memory
from misplace.kernels.testing.shapes import with_gaps
from misplace.kernels.token_plan import TokenPlan, dense_plan, num_kept, token_plan
from misplace.kernels.token_plan.api import SUPPORTED

RUNNABLE = runnable(SUPPORTED)
NAME = dict(seed=2**64 - 3, epoch=2**32 - 2, view=255)
USUAL = dict(num_patches=196, drop_rate=0.75, wrong_rate=0.2, seed=3, epoch=1, view=0)


def rows(plan: TokenPlan) -> list[list[tuple[int, int, bool]]]:
    return [list(zip(*row, strict=True)) for row in zip(*(part.tolist() for part in plan), strict=True)]


def equal(a: TokenPlan, b: TokenPlan) -> bool:
    return all(torch.equal(x.cpu(), y.cpu()) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("device, impl", RUNNABLE)
@pytest.mark.parametrize("wrong_rate", WRONG_RATES)
@pytest.mark.parametrize("drop_rate", DROP_RATES)
@pytest.mark.parametrize("num_patches", NUM_PATCHES)
def test_equals_the_plan_by_hand(device, impl, num_patches, drop_rate, wrong_rate):
    index = torch.tensor(INDICES, device=device)
    sizes = dict(num_patches=num_patches, drop_rate=drop_rate, wrong_rate=wrong_rate)
    with poisoned_memory():
        plan = token_plan(index, **sizes, **NAME, impl=impl)
    require_rules(plan, num_patches)
    kept = num_kept(num_patches, drop_rate)
    assert rows(plan) == [plan_by_hand(i, num_patches, kept, wrong_rate, **NAME) for i in INDICES]


@settings(max_examples=80, deadline=None)
@given(
    num_patches=st.integers(1, 90) | st.integers(1, 1024),
    drop_rate=st.floats(0, 0.99),
    wrong_rate=st.floats(0, 1),
    index=st.integers(0, 2**63 - 1),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
    view=st.integers(0, 255),
)
def test_any_sizes_and_names(num_patches, drop_rate, wrong_rate, index, seed, epoch, view):
    kept = max(1, int(num_patches * (1 - drop_rate) + 1e-6))
    name = dict(seed=seed, epoch=epoch, view=view)
    sizes = dict(num_patches=num_patches, drop_rate=1 - kept / num_patches, wrong_rate=wrong_rate)
    expected = [plan_by_hand(index, num_patches, kept, wrong_rate, **name)]
    for device, impl in RUNNABLE:
        plan = token_plan(torch.tensor([index], device=device), **sizes, **name, impl=impl)
        assert rows(plan) == expected, impl


@pytest.mark.parametrize("device, impl", RUNNABLE)
@pytest.mark.parametrize("num_patches", NUM_PATCHES)
def test_nothing_dropped_nothing_wrong_is_the_dense_plan(device, impl, num_patches):
    index = torch.arange(5, device=device)
    plan = token_plan(index, num_patches=num_patches, drop_rate=0.0, wrong_rate=0.0, **NAME, impl=impl)
    assert equal(plan, dense_plan(5, num_patches, device))


def test_dense_plan_is_dense_and_correct():
    plan = dense_plan(2, 3, "cpu")
    require_rules(plan, 3)
    assert rows(plan) == [[(0, 0, False), (1, 1, False), (2, 2, False)]] * 2


@pytest.mark.parametrize("drop_rate", [0.5, 0.75, 0.9])
def test_where_enough_is_dropped_a_wrong_position_is_a_dropped_patch(drop_rate):
    plan = token_plan(torch.arange(64), **USUAL | dict(drop_rate=drop_rate, wrong_rate=1.0))
    shared = plan.pos[:, :, None] == plan.src[:, None, :]
    assert plan.wrong.all() and not shared.any()


@pytest.mark.parametrize("num_patches, wrong_rate", [(36, 0.2), (49, 1.0), (196, 0.2), (197, 1.0)])
def test_nothing_dropped_gives_a_permutation(num_patches, wrong_rate):
    plan = token_plan(torch.arange(64), **USUAL | dict(num_patches=num_patches, drop_rate=0.0, wrong_rate=wrong_rate))
    assert torch.equal(plan.pos.sort(dim=1).values, plan.src)
    assert plan.wrong.any()


def test_a_lone_remainder_is_not_wrong():
    # one flagged token of three, none dropped: it cannot move alone; two or three always do
    plan = token_plan(torch.arange(400), **USUAL | dict(num_patches=3, drop_rate=0.0, wrong_rate=1 / 3))
    moved = plan.wrong.sum(dim=1)
    assert set(moved.tolist()) == {0, 2, 3}


def test_kept_count():
    assert [num_kept(196, rate) for rate in DROP_RATES] == [196, 176, 147, 98, 49, 19]
    assert num_kept(10, 0.9) == 1  # 10 * (1 - 0.9) is a hair below 1


@pytest.mark.parametrize("device, impl", RUNNABLE)
def test_hostile_batches(device, impl):
    none = token_plan(torch.empty(0, dtype=torch.int64, device=device), **USUAL, impl=impl)
    assert [part.shape for part in none] == [(0, 49)] * 3
    index = torch.tensor(INDICES, device=device)
    dense = token_plan(index, **USUAL, impl=impl)
    assert equal(dense, token_plan(with_gaps(index), **USUAL, impl=impl))
    repeated = token_plan(index[1:2].expand(5), **USUAL, impl=impl)
    assert equal(repeated, TokenPlan(*(part[1:2].expand(5, -1) for part in dense)))


@pytest.mark.parametrize(
    "changed, error, words",
    [
        (dict(index=torch.arange(3, dtype=torch.int32)), TypeError, "int64"),
        (dict(index=torch.zeros(2, 2, dtype=torch.int64)), ValueError, r"\[B\]"),
        (dict(num_patches=0), ValueError, "num_patches"),
        (dict(num_patches=1025), ValueError, "num_patches"),
        (dict(drop_rate=1.0), ValueError, "drop_rate"),
        (dict(drop_rate=-0.1), ValueError, "drop_rate"),
        (dict(drop_rate=float("nan")), ValueError, "drop_rate"),
        (dict(drop_rate=0.999), ValueError, "keeps none"),
        (dict(wrong_rate=1.1), ValueError, "wrong_rate"),
        (dict(wrong_rate=float("nan")), ValueError, "wrong_rate"),
        (dict(seed=-1), ValueError, "seed"),
        (dict(seed=2**64), ValueError, "seed"),
        (dict(epoch=2**32), ValueError, "epoch"),
        (dict(view=256), ValueError, "view"),
        (dict(impl="fast"), ImplUnavailableError, "unknown impl"),
        (dict(impl="torch"), ImplUnavailableError, "has no impl=torch"),
    ],
)
def test_bad_input(changed, error, words):
    with pytest.raises(error, match=words):
        token_plan(**dict(index=torch.arange(3)) | USUAL | changed)


def test_the_registered_op_checks_for_itself():
    token_plan(torch.arange(1), **USUAL, impl=Impl.NATIVE)
    op = torch.ops.misplace.token_plan
    with pytest.raises(TypeError, match="int64"):
        op(torch.zeros(2), 49, 12, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"must be \[B\]"):
        op(torch.zeros(2, 2, dtype=torch.int64), 49, 12, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="num_kept"):
        op(torch.arange(2), 49, 50, 0, 0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 9])
def test_opcheck(size):
    token_plan(torch.arange(1), **USUAL, impl=Impl.NATIVE)
    index = with_gaps(torch.arange(size))
    torch.library.opcheck(torch.ops.misplace.token_plan.default, (index, 49, 30, -1, 2**31, 1, 2**32))


@pytest.mark.parametrize("device, impl", RUNNABLE)
def test_compiles_whole_and_not_again_for_every_epoch(device, impl):
    from torch._dynamo.testing import CompileCounterWithBackend

    backend = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(index, epoch):
        return token_plan(index, **USUAL | dict(epoch=epoch), impl=impl)

    index = torch.arange(4, device=device)
    for epoch in (0, 1, 2, 3, 2**31):
        assert equal(compiled(index, epoch), token_plan(index, **USUAL | dict(epoch=epoch), impl=impl))
    assert backend.frame_count <= 2  # once for a number, once for any


COLD = """
import sys
sys.modules["triton"] = sys.modules["xformers"] = None
if "native" in sys.argv: sys.modules["misplace.kernels._C"] = None
import torch
from misplace.kernels.impl import ImplUnavailableError
from misplace.kernels.token_plan import token_plan
sizes = dict(num_patches=49, drop_rate=0.5, wrong_rate=0.2, seed=0, epoch=0, view=0)
assert token_plan(torch.arange(3), **sizes).src.shape == (3, 24)
try:
    token_plan(torch.arange(3), **sizes, impl=sys.argv[1])
except ImplUnavailableError as error:
    print(error)
"""


@pytest.mark.parametrize("impl, reason", [("triton", "triton is not installed"), ("native", "is not built")])
def test_works_without_it_and_says_so_when_asked_for_it(impl, reason):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COLD, impl], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout
