"""The peers of adamw_ema take the same step as it does, and its gate is red for a wrong one."""

import pytest
import torch

from misplace.bench import peers
from misplace.bench.cases import adamw_ema as module
from misplace.bench.registry import cases_of

CPU = torch.device("cpu")
(CASE,) = cases_of("adamw_ema", tiny=True)


def after(thunk_of) -> list[torch.Tensor]:
    """Parameters, moments, teacher and copies after one step."""
    inputs = CASE.make_inputs(CPU)
    thunk_of(inputs)()
    tensors = inputs.tensors
    lists = (tensors.parameters, tensors.exp_avg, tensors.exp_avg_sq, tensors.teacher)
    return [torch.cat([t.detach().flatten().float() for t in entries]) for entries in lists] + [
        torch.stack([low.float().sum() for low in tensors.student_copies + tensors.teacher_copies])
    ]


@pytest.mark.parametrize("name", ["eager", "compile"])
def test_a_peer_takes_the_same_step(name, monkeypatch):
    monkeypatch.setattr(peers, "compiled", lambda function, device: function)
    ours = after(lambda inputs: CASE.ours(inputs, "reference"))
    torch.testing.assert_close(after(CASE.peers[name]), ours)


def test_the_gate_is_red_for_a_wrong_step(monkeypatch):
    honest = module.update

    def too_fast(*args, lr, impl, **settings):
        honest(*args, lr=lr * (1.01 if impl == "torch" else 1), impl="reference", **settings)

    monkeypatch.setattr(module, "update", too_fast)
    check = CASE.check(CASE.make_inputs(CPU), "torch")
    assert check.error > check.bound
