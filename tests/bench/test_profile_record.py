"""The recorder: what it sees of a step, and that the step does not notice it."""

import pytest
import torch

from misplace import kernels
from misplace.bench.profile import record
from misplace.bench.profile.record import Recorder, Spans, medians, replaced_ops
from misplace.engine.optim import adamw_ema as optimizer

CPU = torch.device("cpu")


def gelu_step(x: torch.Tensor, recorder: Recorder | None = None) -> torch.Tensor:
    """Two ops and a write between them; the gradient of x."""
    x = x.clone().requires_grad_()
    with torch.no_grad():
        kernels.gelu(x, impl="torch")
    y = kernels.gelu(x, impl="torch")
    y += 1
    return torch.autograd.grad(kernels.gelu(y, impl="reference").sum(), x)[0]


def test_calls_are_told_apart_by_implementation_and_gradient():
    recorder, x = Recorder(CPU), torch.randn(3, 5)
    for _ in range(2):
        with recorder.step():
            gelu_step(x)
    found = {(site.impl, site.inputs, site.outputs): spans for site, spans in recorder.sites.items()}
    assert set(found) == {
        ("torch", ("float32 [3, 5]",), ("float32 [3, 5]",)),
        ("torch", ("float32 [3, 5]*",), ("float32 [3, 5]*",)),
        ("reference", ("float32 [3, 5]*",), ("float32 [3, 5]*",)),
    }
    for (_, inputs, _), spans in found.items():
        assert [each.calls for each in spans] == [1, 1]
        assert all(each.forward > 0 for each in spans)
        assert all((each.backward > 0) == inputs[0].endswith("*") for each in spans)
    assert len(recorder.step_ms) == 2


def test_a_recorded_step_computes_the_same_bits():
    x, recorder = torch.randn(64), Recorder(CPU)
    with recorder.step():
        recorded = gelu_step(x)
    assert torch.equal(recorded, gelu_step(x))


def test_spans_hold_the_op_and_nothing_beside_it(clock, monkeypatch):
    """A call of 2 s forward and 5 s backward, with 100 s before, between and after."""
    monkeypatch.setattr(record, "time", clock)

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            clock.now += 2
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            clock.now += 5
            return gradient * 2

    class Beside(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            clock.now += 100
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            clock.now += 100
            return gradient

    def gelu(x, *, impl="auto"):
        return Slow.apply(Slow.apply(x))

    monkeypatch.setattr(kernels, "gelu", gelu)
    recorder, x = Recorder(CPU), torch.ones(2, requires_grad=True)
    with recorder.step():
        y = Beside.apply(kernels.gelu(Beside.apply(kernels.gelu(Beside.apply(x)))))
        y.sum().backward()
    (spans,) = recorder.sites.values()
    assert spans == [Spans(2, 8000, 20000)]
    assert recorder.step_ms == [2 * 4000 + 2 * 10000 + 600000]
    assert torch.equal(x.grad, torch.full((2,), 16.0))


def test_ops_are_put_back_after_an_error():
    before = [getattr(kernels, name) for name in kernels.OPS] + [optimizer.update]
    with pytest.raises(RuntimeError, match="inside"), replaced_ops(lambda name, op, *_: None):
        assert kernels.linear is None and optimizer.update is None
        raise RuntimeError("inside")
    assert [getattr(kernels, name) for name in kernels.OPS] + [optimizer.update] == before


def test_examples_are_cut_off_from_the_graph():
    recorder = Recorder(CPU)
    weight = torch.randn(4, 3, requires_grad=True)
    with recorder.step():
        x = torch.randn(2, 3, requires_grad=True) * 2
        kernels.linear(x, weight, None, impl="torch").sum().backward()
    (example,) = recorder.examples.values()
    assert all(example.arguments[name].is_leaf and example.arguments[name].requires_grad for name in ("x", "weight"))
    assert example.arguments["x"].data_ptr() == x.data_ptr()
    assert [tuple(out.shape) for out in example.outputs] == [(2, 4)]


def test_medians_count_steps_without_the_call():
    assert medians([Spans(2, 4.0, 1.0)] * 3, 3) == Spans(2, 4.0, 1.0)
    assert medians([Spans(2, 4.0, 1.0)], 3) == Spans(0, 0.0, 0.0)


@pytest.mark.gpu
def test_cuda_events_see_forward_and_backward():
    recorder = Recorder(torch.device("cuda"))
    x = torch.randn(2048, 2048, device="cuda", requires_grad=True)
    weight = torch.randn(2048, 2048, device="cuda", requires_grad=True)
    with recorder.step():
        kernels.linear(x, weight, None, impl="torch").sum().backward()
    (spans,) = recorder.sites.values()
    assert spans[0].forward > 0 and spans[0].backward > 0
    assert spans[0].forward + spans[0].backward <= recorder.step_ms[0]
