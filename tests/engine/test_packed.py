"""Views and local crops in one pass: what each gets by itself, values and gradients, at every size."""

import pytest
import torch
import torch.nn.functional as F

from misplace.engine.implementations import use_implementations
from misplace.engine.models import VisionTransformer
from misplace.engine.models.position import bicubic_matrix
from misplace.kernels import OPS, TokenPlan, dense_plan, token_plan

VIEWS, CROPS = 3, 5


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=24, patch_size=4, channels=3, width=64, depth=3, num_heads=2, mean=(0.5,) * 3, std=(0.25,) * 3,
        init="uniform_fan_in", learned_position=True, freeze_patch_projection=False,
    )  # fmt: skip


def parts() -> list[tuple[torch.Tensor, TokenPlan]]:
    generator = torch.Generator().manual_seed(0)
    pixels = [
        torch.randint(256, (n, s, s, 3), dtype=torch.uint8, generator=generator) for n, s in ((VIEWS, 24), (CROPS, 12))
    ]
    sparse = token_plan(torch.arange(VIEWS), num_patches=36, drop_rate=0.5, wrong_rate=0.2, seed=0, epoch=0, view=0)
    return [(pixels[0], sparse), (pixels[1], dense_plan(CROPS, 9, "cpu"))]


def gradients(encoder, tokens):
    weights = [
        torch.randn(t.shape, generator=torch.Generator().manual_seed(i), dtype=t.dtype) for i, t in enumerate(tokens)
    ]
    encoder.zero_grad()
    sum((t * w).sum() for t, w in zip(tokens, weights)).backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def test_packed_is_each_part_by_itself(encoder):
    use_implementations(encoder.double(), dict.fromkeys(OPS, "reference"))
    encoder.compute_dtype = torch.float64
    packed = encoder.forward_packed(parts())
    alone = [encoder(images, plan) for images, plan in parts()]
    assert [t.shape for t in packed] == [(VIEWS, 1 + 18, 64), (CROPS, 1 + 9, 64)]
    for ours, expected in zip(packed, alone):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    ours, expected = gradients(encoder, packed), gradients(encoder, alone)
    assert ours.keys() == expected.keys() and "pos_embed" in ours
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-9, atol=1e-11)


def test_fused_packed_is_as_near_as_fused_alone(encoder):
    """Both against fp64: packing costs no accuracy."""
    low = [t.detach() for t in encoder.forward_packed(parts())]
    alone = [encoder(images, plan).detach() for images, plan in parts()]
    use_implementations(encoder.double(), dict.fromkeys(OPS, "reference"))
    encoder.compute_dtype = torch.float64
    exact = encoder.forward_packed(parts())
    for ours, other, oracle in zip(low, alone, exact):
        error, by_itself = ((t.double() - oracle).norm() for t in (ours, other))
        assert 0 < error <= 2 * by_itself


def test_where_sequences_begin_is_worked_out_once(encoder):
    for _ in range(2):
        encoder.forward_packed(parts())
    (packing,) = encoder._packings.values()
    assert packing.cu_seqlens.tolist() == [0, 19, 38, 57, 67, 77, 87, 97, 107] and packing.max_seqlen == 19


def test_the_table_of_positions_is_resized_as_torch_does(encoder):
    with torch.no_grad():
        table = encoder.position_table(3)
    grid = encoder.pos_embed[0, 1:].T.reshape(1, 64, 6, 6)
    expected = F.interpolate(grid, size=(3, 3), mode="bicubic").reshape(64, 9).T
    torch.testing.assert_close(table[1:], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(table[0], encoder.pos_embed[0, 0])
    assert encoder.position_table(6) is not table and torch.equal(encoder.position_table(6), encoder.pos_embed[0])
    # rows of weights sum to one: a constant table stays constant
    torch.testing.assert_close(bicubic_matrix(14, 6).sum(1), torch.ones(36))
