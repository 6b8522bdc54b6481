import pytest
import torch
from torch._subclasses import FakeTensorMode

from misplace.kernels import dropped_patches, token_plan
from misplace.kernels.testing.inputs import normal


def by_hand(src, num_patches):
    rows = [[patch for patch in range(num_patches) if patch not in set(row)] for row in src.tolist()]
    return torch.tensor(rows, dtype=torch.int32).view(len(src), num_patches - src.shape[1])


def make(batch, num_patches, kept):
    return normal(batch, num_patches, seed=1).argsort(dim=1)[:, :kept].int()


@pytest.mark.parametrize("kept", [0, 1, 7, 48, 49])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_the_ascending_complement_of_any_order(batch, kept):
    src = make(batch, 49, kept)
    dropped = dropped_patches(src, 49)
    assert dropped.dtype == torch.int32 and dropped.shape == (batch, 49 - kept) and dropped.is_contiguous()
    assert torch.equal(dropped, by_hand(src, 49))
    assert torch.equal(dropped_patches(src.mT.contiguous().mT, 49), dropped)


def test_of_a_token_plan():
    plan = token_plan(torch.arange(7), num_patches=196, drop_rate=0.75, wrong_rate=0.2, seed=1, epoch=0, view=0)
    both = torch.cat([plan.src, dropped_patches(plan.src, 196)], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(196, dtype=torch.int32).expand(7, 196))


def test_no_patches():
    assert dropped_patches(torch.zeros(3, 0, dtype=torch.int32), 0).shape == (3, 0)


def test_compiles_in_one_graph():
    torch.compiler.reset()
    src = make(5, 49, 12)
    compiled = torch.compile(dropped_patches, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(src, 49), by_hand(src, 49))


def test_shapes_do_not_depend_on_the_data():
    """An operator that asks the device for a number, as a CUDA graph cannot, has no answer for a fake tensor."""
    with FakeTensorMode():
        assert dropped_patches(torch.empty(5, 12, dtype=torch.int32), 49).shape == (5, 37)


@pytest.mark.parametrize("device", ["cuda"])
def test_captured_in_a_cuda_graph(device):
    src = make(5, 49, 12).to(device)
    dropped_patches(src, 49)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dropped = dropped_patches(src, 49)
    src.copy_(src.flip(0))
    graph.replay()
    assert torch.equal(dropped.cpu(), by_hand(src.cpu(), 49))


@pytest.mark.parametrize(
    "src, error, message",
    [
        (torch.zeros(3, dtype=torch.int32), ValueError, r"src must be \[B, K\]"),
        (torch.zeros(3, 2), TypeError, "src must be torch.int32"),
        (torch.zeros(3, 5, dtype=torch.int32), ValueError, "5 distinct patches cannot be kept of 4"),
    ],
)
def test_bad_input_is_named(src, error, message):
    with pytest.raises(error, match=f"dropped_patches: {message}"):
        dropped_patches(src, 4)
