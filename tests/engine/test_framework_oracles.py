"""Every framework against its paper's formula, written out in fp64: loss and gradients, on one rank and on two."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

FRAMEWORKS = ("moco_v3", "simclr", "dino", "dino_batch_norm", "mae")
# fp64's rounding through two blocks, heads and a softmax of temperature .05
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def cases(monkeypatch):
    """The module framework_cases.py beside this file; what computes in fp32 computes in fp64."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import framework_cases

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return framework_cases


def by_the_formula(cases, name):
    case = cases.Case(name)
    loss = cases.ORACLES[name](case)
    named = case.named_parameters()
    return case, loss.detach(), dict(zip(named, torch.autograd.grad(loss, list(named.values()))))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_loss_and_gradients_are_the_formulas(cases, name):
    case, loss, gradients = by_the_formula(cases, name)
    found = case.loss()
    found.backward()
    torch.testing.assert_close(found.detach(), loss, **CLOSE)
    assert len(gradients) > 20
    for parameter_name, parameter in case.named_parameters().items():
        expected = gradients[parameter_name]
        torch.testing.assert_close(parameter.grad, expected, **CLOSE, msg=lambda m, n=parameter_name: f"{n}: {m}")
    # BatchNorm takes away the gradient of what it follows a shift of
    assert sum(g.abs().max() > 1e-8 for g in gradients.values()) > 0.8 * len(gradients)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_two_ranks_make_the_same_loss_and_gradients(cases, name, tmp_path):
    _, loss, gradients = by_the_formula(cases, name)
    command = [sys.executable, cases.__file__, name]
    ranks = [subprocess.Popen([*command, str(rank), "2", str(tmp_path)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, loss, **CLOSE)
    for parameter_name, expected in gradients.items():
        for rank in range(2):
            actual = found[rank]["gradients"][parameter_name]
            torch.testing.assert_close(actual, expected, **CLOSE, msg=lambda m, n=parameter_name: f"{n}: {m}")
    _same_buffers_as_one_rank(cases, name, [rank["buffers"] for rank in found])


def _same_buffers_as_one_rank(cases, name, found):
    """Running statistics of BatchNorm and DINO's centre."""
    case = cases.Case(name)
    case.loss()
    case.framework.finish_step()
    for buffer_name, expected in case.framework.named_buffers():
        if "teacher" not in buffer_name:
            for buffers in found:
                torch.testing.assert_close(buffers[buffer_name], expected, **CLOSE)
