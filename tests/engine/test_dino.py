"""DINO's schedules, and what moves when."""

import dataclasses
import math

import pytest
import torch

from misplace.engine.data import make_loader, open_source
from misplace.engine.frameworks import Dino, DinoConfig
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method, build_optimizer
from misplace.engine.models import VisionTransformer
from misplace.engine.step import compute_losses, training_step


@pytest.fixture
def dino():
    torch.manual_seed(0)
    encoder = VisionTransformer(
        image_size=8, patch_size=4, channels=3, width=16, depth=1, num_heads=2, mean=(0.5,) * 3, std=(0.2,) * 3,
        init="trunc_normal", learned_position=True, freeze_patch_projection=False,
    )  # fmt: skip
    return Dino(DinoConfig(num_prototypes=50, hidden_width=24, bottleneck_width=8), encoder)


@pytest.fixture
def run(runs, images, tmp_path):
    """A tiny method, its optimiser, configuration and batches."""
    config = runs.tiny_config("dino_dilemma", images, tmp_path)
    model = dataclasses.replace(config.model, learned_position=True, freeze_patch_projection=False)
    config = dataclasses.replace(config, model=model)
    source = open_source(config.data.source)
    impls = resolve_implementations(torch.device("cpu"))
    method = build_method(config, source, impls)
    loader = make_loader(source, batch_size=runs.BATCH, num_views=2, image_size=24, augment=config.data.augment, seed=0)
    return method, build_optimizer(method, config, impls), config, list(zip(range(3), loader))


def step(method, optimizer, config, batch, epoch=0):
    batch = batch._replace(epoch=epoch)
    return training_step(method, optimizer, batch, config, progress=0.5, next_progress=lambda: 0.6)


def test_the_teachers_temperature_rises_over_the_warm_epochs(dino):
    temperatures = [dino.schedule(epoch)["teacher_temperature"] for epoch in (0, 1, 29, 30, 500)]
    assert temperatures == pytest.approx([0.04, 0.04 + 0.03 / 29, 0.07, 0.07, 0.07])


def test_momentum_is_that_of_this_step(dino):
    assert [dino.momentum(x, 0.99) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.996, 0.998, 1.0])


def test_uniform_classes_give_the_collapse_loss(dino):
    assert dino.collapse_loss(7) == pytest.approx(math.log(50))


def test_the_head_is_as_published(dino):
    shapes = [tuple(layer.weight.shape) for layer in dino.head.layers]
    assert shapes == [(24, 16), (24, 24), (8, 24)] and dino.prototypes.weight.shape == (50, 8)
    assert all(not layer.bias.any() for layer in dino.head.layers)
    for layer in dino.head.layers:
        assert abs(layer.weight.std() / 0.02 - 1) < 5 / math.sqrt(2 * layer.weight.numel())
    assert 0.9 / math.sqrt(8) < dino.prototypes.weight.abs().max() <= 1 / math.sqrt(8)
    published = DinoConfig()
    assert (published.num_prototypes, published.hidden_width, published.bottleneck_width) == (65_536, 2048, 256)


def test_prototypes_are_held_in_the_first_epoch(run):
    method, optimizer, config, batches = run
    prototypes = method.framework.prototypes.weight
    before, head = prototypes.detach().clone(), method.framework.head.layers[0].weight.detach().clone()
    step(method, optimizer, config, batches[0][1], epoch=0)
    assert torch.equal(prototypes, before) and not torch.equal(method.framework.head.layers[0].weight, head)
    step(method, optimizer, config, batches[1][1], epoch=1)
    assert not torch.equal(prototypes, before) and optimizer.late_steps == 1


def test_the_centre_moves_after_the_loss(run):
    method, optimizer, config, batches = run
    framework, batch = method.framework, batches[0][1]
    assert not framework.centre.any()
    compute_losses(method, batch, 0)
    assert not framework.centre.any() and framework.batch_centre.any()
    step(method, optimizer, config, batch)
    torch.testing.assert_close(framework.centre, 0.1 * framework.batch_centre)
    before = framework.centre.clone()
    framework.finish_step(torch.ones(()))
    assert torch.equal(framework.centre, before)
    framework.finish_step(torch.zeros(()))
    torch.testing.assert_close(framework.centre, before + 0.1 * (framework.batch_centre - before))


def test_the_teacher_follows_backbone_head_and_prototypes_after_the_step(run):
    method, optimizer, config, batches = run
    pairs = list(method.framework.teacher_pairs(method.encoder))
    assert len(pairs) == sum(1 for module in method.framework.teacher.values() for _ in module.parameters())
    before = [teacher.detach().clone() for _, teacher in pairs]
    step(method, optimizer, config, batches[0][1], epoch=1)
    momentum = method.framework.momentum(0.5, 0.6)
    for (student, teacher), old in zip(pairs, before):
        if student.requires_grad:
            torch.testing.assert_close(teacher, momentum * old + (1 - momentum) * student, rtol=1e-5, atol=1e-7)


def test_the_student_sees_global_crops_sparse_and_local_crops_whole(run, monkeypatch):
    method, _, config, batches = run
    seen = []
    real = method.encoder.tokens
    monkeypatch.setattr(
        method.encoder, "tokens", lambda images, plan: seen.append((images, plan)) or real(images, plan)
    )
    compute_losses(method, batches[0][1], 0)
    (views, sparse), (crops, dense) = seen
    assert views.shape[1:3] == (24, 24) and sparse.src.shape == (16, 4) and sparse.wrong.any()
    assert crops.shape[1:3] == (12, 12) and dense.src.shape == (8 * config.data.augment.local_views, 4)
    assert torch.equal(dense.src, dense.pos)


def test_positions_and_patches_are_trained(run):
    method, optimizer, config, batches = run
    assert {"encoder.pos_embed", "encoder.patch_embed.proj.weight"} <= set(optimizer.names)
    assert optimizer.names[-1] == "framework.prototypes.weight"  # late
    before = method.encoder.pos_embed.detach().clone()
    step(method, optimizer, config, batches[0][1])
    assert (method.encoder.pos_embed != before).all()


def test_no_local_crops_is_a_run_too(runs, images, tmp_path):
    config = runs.tiny_config("dino", images, tmp_path)
    augment = dataclasses.replace(config.data.augment, local_views=0)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=augment))
    source = open_source(config.data.source)
    method = build_method(config, source, resolve_implementations(torch.device("cpu")))
    loader = make_loader(source, batch_size=runs.BATCH, num_views=2, image_size=24, augment=augment, seed=0)
    assert compute_losses(method, next(loader), 0).total.isfinite()
