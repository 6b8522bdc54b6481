"""What the backward makes again: the same bits, from less memory."""

import contextlib
import weakref

import pytest
import torch

from misplace import kernels
from misplace.bench.memory import peak_bytes
from misplace.engine.models import VisionTransformer, block, use_low_precision
from misplace.engine.models.recompute import made_again


@contextlib.contextmanager
def kept(tensor, make):
    """Stands in for made_again: everything is saved as usual."""
    yield


def gradients(images, plan):
    torch.manual_seed(0)
    encoder = VisionTransformer(
        image_size=32, patch_size=4, channels=3, width=48, depth=3, num_heads=3, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    use_low_precision(encoder, torch.bfloat16)
    encoder.compute_dtype = torch.bfloat16
    encoder.norm(encoder(images, plan)).square().sum().backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def test_a_trunk_has_the_same_gradients_to_the_bit_and_takes_less(monkeypatch):
    images = torch.randint(256, (16, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan = kernels.dense_plan(16, 64, torch.device("cpu"))
    again, peak = gradients(images, plan), peak_bytes(lambda: gradients(images, plan), torch.device("cpu"))
    monkeypatch.setattr(block, "made_again", kept)
    before, peak_before = gradients(images, plan), peak_bytes(lambda: gradients(images, plan), torch.device("cpu"))
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert peak < 0.8 * peak_before


@pytest.mark.parametrize("uses", [1, 2])
def test_the_tensor_is_released_and_made_once_for_each_that_saved_it(uses):
    x, weight, calls = torch.randn(5, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True), []

    def make():
        calls.append(1)
        return x.detach() * 2

    doubled = x.detach() * 2
    gone = weakref.ref(doubled)
    with made_again(doubled, make):
        total = sum((doubled @ weight).sum() for _ in range(uses))
    del doubled
    assert gone() is None and not calls
    total.backward()
    assert len(calls) == uses
    torch.testing.assert_close(weight.grad, uses * (2 * x.detach()).T @ torch.ones(5, 4))


def test_other_tensors_are_saved_as_usual():
    x, other = torch.randn(3, requires_grad=True), torch.randn(3)
    with made_again(torch.randn(3), lambda: pytest.fail("made something that nobody saved")):
        (x * other).sum().backward()
    assert torch.equal(x.grad, other)
