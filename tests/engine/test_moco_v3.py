"""MoCo v3 against its formulas, written out independently."""

import math
from types import SimpleNamespace

import pytest
import torch

from misplace.engine.frameworks import MocoV3, MocoV3Config
from misplace.engine.models import VisionTransformer
from misplace.engine.models.position import sincos_2d

SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "channels": 3,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
}


@pytest.fixture
def framework():
    torch.manual_seed(0)
    encoder = VisionTransformer(**SMALL)
    return MocoV3(MocoV3Config(hidden_width=24, output_width=12), encoder), encoder


def head(x, linears, affines):
    """Linear without bias, BatchNorm over the batch, ReLU between; in fp64, by the textbook."""
    for depth, (weight, affine) in enumerate(zip(linears, affines)):
        x = x @ weight.double().T
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        if affine is not None:
            x = x * affine[0].double() + affine[1].double()
        if depth < len(linears) - 1:
            x = x.clamp(min=0)
    return x


def parts(module):
    linears = [m.weight for m in module if hasattr(m, "weight_copy")]
    norms = [m for m in module if isinstance(m, torch.nn.BatchNorm1d)]
    return linears, [(m.weight, m.bias) if m.affine else None for m in norms]


def contrast(q, k, tau):
    q, k = (x / x.norm(dim=1, keepdim=True) for x in (q, k))
    logits = q @ k.T / tau
    return 2 * tau * (torch.logsumexp(logits, 1) - logits.diagonal()).mean()


def test_the_loss_is_the_published_formula(framework):
    moco, _ = framework
    tokens = tuple(torch.randn(6, 16) for _ in range(2))
    views = tuple(torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8) for _ in range(2))
    queries = [head(head(t.double(), *parts(moco.projector)), *parts(moco.predictor)) for t in tokens]
    teacher = moco.teacher
    keys = [head(teacher["encoder"].embed(v)[0].double(), *parts(teacher["projector"])) for v in views]
    expected = contrast(queries[0], keys[1], 0.2) + contrast(queries[1], keys[0], 0.2)
    found = moco.losses(SimpleNamespace(class_tokens=tokens), views, {})["contrastive"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_heads_are_as_published(framework):
    moco, _ = framework
    shapes = [tuple(w.shape) for w in parts(moco.projector)[0] + parts(moco.predictor)[0]]
    assert shapes == [(24, 16), (24, 24), (12, 24), (24, 12), (12, 24)]
    assert not any(name.endswith("0.bias") for name, _ in moco.projector.named_parameters())
    assert [affine is None for affine in parts(moco.projector)[1]] == [False, False, True]


def test_momentum_rises_from_099_to_1_by_half_a_cosine(framework):
    moco, _ = framework
    assert moco.momentum(0.0, 0.0) == pytest.approx(0.99)
    assert moco.momentum(0.4, 0.5) == pytest.approx(0.995)
    assert moco.momentum(0.9, 1.0) == 1.0


def test_identical_embeddings_give_the_collapse_loss(framework):
    moco, _ = framework
    same = torch.ones(6, 12)
    loss = moco._contrast(same, same) + moco._contrast(same, same)
    assert loss.item() == pytest.approx(moco.collapse_loss(6), rel=1e-5)
    assert moco.collapse_loss(6) == pytest.approx(4 * 0.2 * math.log(6))


def test_initial_weights_lie_in_the_published_bounds(framework):
    _, encoder = framework
    block = encoder.blocks[0]
    for weight, inside, outside in (
        (block.attn.qkv.weight, 16, 16),  # as three matrices
        (block.attn.proj.weight, 16, 16),
        (block.mlp.fc1.weight, 16, 64),
        (encoder.patch_embed.proj.weight, 48, 16),
    ):
        bound = math.sqrt(6 / (inside + outside))
        assert 0.9 * bound < weight.abs().max() <= bound
    assert not block.mlp.fc1.bias.any() and encoder.cls_token.abs().max() < 1e-5
    assert not encoder.patch_embed.proj.weight.requires_grad and not encoder.pos_embed.requires_grad


def test_the_other_init_is_a_truncated_normal_of_a_fiftieth():
    torch.manual_seed(0)
    encoder = VisionTransformer(**{**SMALL, "width": 64}, init="trunc_normal")
    block = encoder.blocks[0]
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        # the deviation of n draws is itself off by 1 / sqrt(2 n) of it: five of those
        assert abs(layer.weight.std() / 0.02 - 1) < 5 / math.sqrt(2 * layer.weight.numel())
        assert not layer.bias.any()
    patches = encoder.patch_embed.proj
    assert 0.9 / math.sqrt(48) < patches.weight.abs().max() <= 1 / math.sqrt(48) and not patches.bias.any()
    assert not patches.weight.requires_grad


def test_the_third_init_is_that_of_torch_itself():
    torch.manual_seed(0)
    encoder = VisionTransformer(**{**SMALL, "width": 64}, init="uniform_fan_in")
    block = encoder.blocks[0]
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2, encoder.patch_embed.proj):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for values in (layer.weight, layer.bias):
            assert 0.9 * bound < values.abs().max() <= bound
    assert not encoder.patch_embed.proj.weight.requires_grad


def test_positions_are_sines_and_cosines_of_column_and_row():
    table = sincos_2d(8, rows=2, columns=3)
    assert table.shape == (7, 8) and not table[0].any()
    row, column, omega = 1, 2, (1.0, 0.01)
    expected = [f(p * w) for p in (column, row) for f in (math.sin, math.cos) for w in omega]
    torch.testing.assert_close(table[1 + row * 3 + column], torch.tensor(expected))
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(10, 2, 2)
