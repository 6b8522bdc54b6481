"""Every registered case can be measured, and its peers do the same job."""

import pytest
import torch

from misplace.bench.peers import compiled
from misplace.bench.peers.token_plan import eager_plan
from misplace.bench.registry import cases_of, op_names
from misplace.engine.errors import UserError

CPU = torch.device("cpu")
TINY = [case for op in op_names() for case in cases_of(op, tiny=True)]


@pytest.mark.parametrize("op", op_names())
def test_full_cases_are_distinct_and_named_as_their_file(op):
    cases = cases_of(op, tiny=False)
    assert {case.op for case in cases} == {op}
    assert len({(case.mode, case.shape, case.dtype) for case in cases}) == len(cases)
    assert all(case.bytes_moved > 0 for case in cases)


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.op}-{case.mode}")
def test_reference_passes_its_own_gate(case):
    check = case.check(case.make_inputs(CPU), "reference")
    assert check.error <= check.bound


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.op}-{case.mode}")
def test_eager_peer_returns_what_ours_returns(case):
    inputs = case.make_inputs(CPU)
    ours, peer = case.ours(inputs, "reference")(), case.peers["eager"](inputs)()
    assert [t.shape for t in ours] == [t.shape for t in peer]


def test_unknown_op_is_a_user_error():
    with pytest.raises(UserError, match=r"unknown op 'nonsense'; one of .*token_plan"):
        cases_of("nonsense", tiny=True)


def test_token_plan_gate_counts_every_differing_entry(monkeypatch):
    from misplace.bench.cases import token_plan as module

    case = next(case for case in TINY if case.op == "token_plan")
    inputs = case.make_inputs(CPU)
    honest = module.token_plan

    def one_off(*args, impl, **settings):
        plan = honest(*args, impl="reference", **settings)
        if impl == "native":
            plan.pos[0, 0] += 1
            plan.wrong[-1, -1] ^= True
        return plan

    monkeypatch.setattr(module, "token_plan", one_off)
    assert case.check(inputs, "native") == (2.0, 0.0)


@pytest.mark.parametrize("drop_rate", [0.0, 0.25, 0.5, 0.75])
def test_eager_plan_misplaces_the_share_it_says(drop_rate):
    torch.manual_seed(0)
    batch, patches = 400, 196
    kept = int(patches * (1 - drop_rate))
    src, pos, wrong = eager_plan(batch, patches, kept, 0.2, CPU)
    assert src.shape == pos.shape == wrong.shape == (batch, kept)
    assert all(len(set(row)) == kept for row in src.tolist())
    assert torch.equal(pos[~wrong], src[~wrong])
    sigma = (0.2 * 0.8 / (batch * kept)) ** 0.5
    assert abs(wrong.float().mean() - 0.2) < 4 * sigma
    if drop_rate >= 0.5:
        assert not (pos[:, :, None] == src[:, None, :]).any(2)[wrong].any(), "a wrong position is a dropped one"


def test_compile_without_a_compiler_is_a_user_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        compiled(eager_plan, CPU)
