"""DILEMMA learns where there is something to learn, and nothing where positions are not moved."""

import dataclasses

import pytest
import torch

from misplace.engine.collapse import chance_bce
from misplace.engine.errors import UserError
from misplace.engine.models import VisionTransformer
from misplace.engine.pretexts import Dilemma, DilemmaConfig
from misplace.kernels import TokenPlan

SIDE, PATCH = 24, 4  # 36 patches, of which 9 are kept


def located_images(count: int) -> torch.Tensor:
    """Images whose every patch says where it is: brightness by row, hue by column. uint8 [count, 24, 24, 3]."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.arange(SIDE) * (200 / SIDE)
    image = torch.stack(
        [ramp[:, None].expand(SIDE, SIDE), ramp[None].expand(SIDE, SIDE), torch.full((SIDE, SIDE), 90.0)]
    )
    noise = 20 * torch.rand(count, SIDE, SIDE, 3, generator=generator)
    return (image.movedim(0, -1) + noise).to(torch.uint8)


def train(move: bool, steps: int = 150) -> float:
    """The mean BCE of the last 20 of `steps` steps; without `move`, labels stay but no position is wrong."""
    torch.manual_seed(0)
    encoder = VisionTransformer(
        image_size=SIDE,
        patch_size=PATCH,
        channels=3,
        width=64,
        depth=2,
        num_heads=2,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    pretext = Dilemma(DilemmaConfig(), encoder)
    trained = [p for p in [*encoder.parameters(), *pretext.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    images, history = located_images(256), []
    for step in range(steps):
        index = torch.arange(64) + 64 * (step % 4)
        plan = pretext.plan(index, encoder.num_patches, seed=0, epoch=step, view=0)
        seen = plan if move else TokenPlan(plan.src, plan.src, plan.wrong)
        terms, _ = pretext.losses(encoder, encoder(images[index], seen), plan)
        terms["bce"].backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(terms["bce"].item())
    return sum(history[-20:]) / 20


def test_bce_falls_well_below_chance_when_positions_say_something():
    assert train(move=True) < 0.5 * chance_bce(0.2)


def test_bce_stays_at_chance_when_labels_are_kept_and_positions_are_not_moved():
    # 20 batches of 576 tokens: the mean BCE of a constant head has a standard error below 0.006 nats
    assert abs(train(move=False) - chance_bce(0.2)) < 0.02


def test_chance_is_the_entropy_of_theta():
    assert chance_bce(0.2) == pytest.approx(0.5004, abs=5e-5)


def test_the_trunk_hears_of_the_bce_from_the_first_step():
    """A head that starts at zero hands the trunk none; beside a contrastive loss the BCE then stays at chance."""
    torch.manual_seed(0)
    encoder = VisionTransformer(
        image_size=8, patch_size=4, channels=1, width=16, depth=1, num_heads=1, mean=(0.5,), std=(0.5,)
    )
    pretext = Dilemma(DilemmaConfig(drop_rate=0.0), encoder)
    plan = pretext.plan(torch.arange(5), 4, seed=0, epoch=0, view=0)
    images = torch.arange(5 * 64, dtype=torch.int32).remainder(256).to(torch.uint8).view(5, 8, 8, 1)
    terms, detection = pretext.losses(encoder, encoder(images, plan), plan)
    assert detection.logits.shape == detection.wrong.shape == (5, 4)
    terms["bce"].backward()
    heard = encoder.blocks[0].mlp.fc2.weight.grad.norm()
    # a head of unit norm would pass on about (1 - theta) theta / sqrt(tokens); a tenth of that is not silence
    assert heard > 0.1 * 0.16 / 20**0.5


@pytest.mark.parametrize(
    "changes", [{"drop_rate": 1.0}, {"drop_rate": -0.1}, {"wrong_rate": 1.5}, {"weight": float("nan")}]
)
def test_impossible_rates_are_refused(changes):
    with pytest.raises(UserError, match="--pretext"):
        dataclasses.replace(DilemmaConfig(), **changes)
