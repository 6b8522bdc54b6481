"""What MAE and SimCLR are made of, beyond their losses (test_framework_oracles.py)."""

import dataclasses
import math

import pytest
import torch

from misplace.engine.data import open_source
from misplace.engine.errors import UserError
from misplace.engine.frameworks import Mae, MaeConfig, Simclr, SimclrConfig, Student
from misplace.engine.frameworks.mae import from_patches, to_patches
from misplace.engine.models import VisionTransformer
from misplace.engine.pretexts import NoPretext, NoPretextConfig
from misplace.engine.resolve import resolve
from misplace.kernels import dense_plan, token_plan

SMALL = {
    "image_size": 16, "patch_size": 4, "channels": 3, "width": 32, "depth": 1, "num_heads": 2,
    "mean": (0.5,) * 3, "std": (0.25,) * 3,
}  # fmt: skip


def test_the_published_decoder():
    config = MaeConfig()
    assert (config.decoder_width, config.decoder_depth, config.decoder_heads) == (512, 8, 16)
    mae = Mae(MaeConfig(decoder_width=32, decoder_depth=3, decoder_heads=4), VisionTransformer(**SMALL))
    decoder = mae.decoder
    assert len(decoder.blocks) == 3 and decoder.head.weight.shape == (48, 32) and decoder.embed.weight.shape == (32, 32)
    assert not decoder.pos_embed.requires_grad and not decoder.pos_embed[0].any()
    bound = math.sqrt(6 / (32 + 96))  # qkv as one matrix
    assert 0.9 * bound < decoder.blocks[0].attn.qkv.weight.abs().max() <= bound


def test_the_decoder_puts_misplaced_tokens_at_their_true_places():
    """What it predicts does not depend on the positions that the encoder was told, only on the tokens."""
    torch.manual_seed(0)
    encoder = VisionTransformer(**SMALL)
    mae = Mae(MaeConfig(decoder_width=32, decoder_depth=1, decoder_heads=2), encoder)
    plan = token_plan(torch.arange(3), num_patches=16, drop_rate=0.5, wrong_rate=1.0, seed=0, epoch=0, view=0)
    assert plan.wrong.all()
    seen = []
    mae.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    pixels = torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8)
    mae.losses(Student(encoder, encoder(pixels, plan), plan, 1), (pixels,), {})
    _, src, dropped = seen[0]
    assert torch.equal(src, plan.src)
    for kept, others in zip(src.tolist(), dropped.tolist()):
        assert others == sorted(set(range(16)) - set(kept))


def test_only_dropped_patches_are_asked_for():
    torch.manual_seed(0)
    encoder = VisionTransformer(**SMALL)
    mae = Mae(MaeConfig(decoder_width=32, decoder_depth=1, decoder_heads=2), encoder)
    tokens, src = torch.randn(2, 1 + 4, 32), torch.tensor([[1, 5, 9, 13], [0, 2, 4, 6]], dtype=torch.int32)
    dropped = torch.tensor([[0, 2], [1, 15]], dtype=torch.int32)
    every = torch.arange(16, dtype=torch.int32).expand(2, 16)
    some, whole = mae.decoder(tokens, src, dropped), mae.decoder(tokens, src, every)
    assert some.shape == (2, 2, 48)
    for image, places in enumerate(dropped.tolist()):
        torch.testing.assert_close(some[image], whole[image, places])


def test_mae_refuses_to_reconstruct_nothing(runs, images, tmp_path):
    config = runs.tiny_config("mae", images, tmp_path, pretext={"drop_rate": 0.0})
    with pytest.raises(UserError, match="drops none of 16 patches for MAE"):
        resolve(config, open_source(str(images)))


def test_local_crops_are_refused_where_nothing_takes_them(runs, images, tmp_path):
    config = runs.tiny_config("simclr", images, tmp_path)
    augment = dataclasses.replace(config.data.augment, local_views=2, local_size=12)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=augment))
    with pytest.raises(UserError, match="Simclr takes no local crops; Dino does"):
        resolve(config, open_source(str(images)))


def test_maes_init_is_xavier_with_one_qkv_matrix():
    torch.manual_seed(0)
    encoder = VisionTransformer(**{**SMALL, "width": 64}, init="xavier_whole_qkv", freeze_patch_projection=False)
    weight = encoder.blocks[0].attn.qkv.weight
    bound = math.sqrt(6 / (64 + 192))
    assert 0.9 * bound < weight.abs().max() <= bound and encoder.patch_embed.proj.weight.requires_grad
    assert 0.01 < encoder.cls_token.std() < 0.03


def test_simclrs_projector_is_three_layers_of_the_encoders_width():
    simclr = Simclr(SimclrConfig(), VisionTransformer(**SMALL))
    shapes = [tuple(layer.weight.shape) for layer in simclr.projector if hasattr(layer, "weight_copy")]
    assert shapes == [(32, 32), (32, 32), (128, 32)]
    assert simclr.collapse_loss(64) == pytest.approx(math.log(127))
    assert SimclrConfig().temperature == 0.1
    assert list(simclr.teacher_pairs(None)) == []


def test_a_plain_plan_with_a_drop_rate_is_sparse_and_correct():
    index = torch.arange(5)
    sparse = NoPretext(NoPretextConfig(drop_rate=0.75), None).plan(index, 16, seed=1, epoch=2, view=0)
    expected = token_plan(index, num_patches=16, drop_rate=0.75, wrong_rate=0.0, seed=1, epoch=2, view=0)
    assert all(torch.equal(a, b) for a, b in zip(sparse, expected)) and not sparse.wrong.any()
    dense = NoPretext(NoPretextConfig(), None).plan(index, 16, seed=1, epoch=2, view=0)
    assert all(torch.equal(a, b) for a, b in zip(dense, dense_plan(5, 16, "cpu")))


def test_patches_go_apart_and_together_again():
    images = torch.randint(256, (2, 8, 12, 3), dtype=torch.uint8)
    patches = to_patches(images, 4)
    assert patches.shape == (2, 6, 48) and torch.equal(from_patches(patches, images.shape, 4), images)
    assert torch.equal(patches[1, 4].reshape(4, 4, 3), images[1, 4:8, 4:8])


@pytest.mark.parametrize("normalise", [True, False])
def test_a_perfect_decoder_is_shown_as_the_image(monkeypatch, normalise):
    """The targets as predictions give the image back, kept patches and all."""
    encoder = VisionTransformer(**SMALL)
    mae = Mae(MaeConfig(decoder_width=32, decoder_depth=1, decoder_heads=2, normalise_patches=normalise), encoder)
    images = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    plan = token_plan(torch.arange(2), num_patches=16, drop_rate=0.75, wrong_rate=0.0, seed=0, epoch=0, view=0)
    dropped = torch.tensor([sorted(set(range(16)) - set(kept)) for kept in plan.src.tolist()], dtype=torch.int32)
    wanted = to_patches((images.float() / 255 - 0.5) / 0.25, 4).gather(1, dropped.long()[..., None].expand(-1, -1, 48))
    if normalise:
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6).sqrt()
    monkeypatch.setattr(mae, "_predict", lambda student: (dropped, wanted))
    made = mae.pictures(Student(encoder, torch.empty(0), plan, 1), (images,))["reconstruction"]
    assert torch.equal(made, images)
    monkeypatch.setattr(mae, "_predict", lambda student: (dropped, wanted + 1))
    assert not torch.equal(mae.pictures(Student(encoder, torch.empty(0), plan, 1), (images,))["reconstruction"], images)
