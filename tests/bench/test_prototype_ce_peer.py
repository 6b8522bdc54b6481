"""The peer of prototype_ce computes the same numbers, and takes more than four times the memory."""

import functools

import torch

from misplace.bench.memory import peak_bytes
from misplace.bench.peers.prototype_ce import eager_prototype_ce, forward_backward
from misplace.kernels import prototype_ce
from misplace.kernels.testing.prototypes import make

CPU = torch.device("cpu")


def peers_order(tensors):
    """The inputs of forward_backward; what is differentiated comes first."""
    student, teacher, prototypes, teacher_prototypes, centre = tensors.values()
    differentiated = (tensor.clone().requires_grad_() for tensor in (student, prototypes))
    return *differentiated, teacher, teacher_prototypes, centre


def ours(student, prototypes, teacher, teacher_prototypes, centre, impl="auto"):
    return prototype_ce(student, teacher, prototypes, teacher_prototypes, centre, impl=impl)


def test_the_peer_is_the_reference():
    inputs = peers_order({name: tensor.double() for name, tensor in make(4, 2, 3, 61, 16).items()})
    reference = forward_backward(functools.partial(ours, impl="reference"), *inputs)
    # its softmaxes are in fp32 whatever the features
    for actual, expected in zip(forward_backward(eager_prototype_ce, *inputs), reference, strict=True):
        assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def test_peak_memory_is_under_a_quarter_of_eagers():
    inputs = peers_order(make(10, 2, 64, 8192, 128))
    fused, eager = (
        peak_bytes(functools.partial(forward_backward, function, *inputs), CPU)
        for function in (ours, eager_prototype_ce)
    )
    assert inputs[1].nbytes < fused < 0.25 * eager
