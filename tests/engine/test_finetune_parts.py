"""What fine-tuning is made of: mixing, stochastic depth, rates per layer, few labels; each against other code."""

import importlib
import math

import numpy as np
import pytest
import torch

from misplace.engine.data import open_source
from misplace.engine.data.subset import Subset
from misplace.engine.errors import UserError
from misplace.engine.evaluation.protocols.finetune.classifier import Classifier, drop_path, trunk
from misplace.engine.evaluation.protocols.finetune.layer_decay import parameter_groups
from misplace.engine.evaluation.protocols.finetune.mixing import (
    Box,
    cutmix,
    draw_box,
    draw_share,
    mix,
    mixup,
    soft_targets,
)
from misplace.engine.evaluation.shots import draw_shots
from misplace.engine.export import to_timm
from misplace.engine.models import VisionTransformer
from misplace.kernels import dense_plan

MODEL = {
    "image_size": 24, "patch_size": 6, "channels": 3, "width": 64, "depth": 3, "num_heads": 2,
    "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25],
}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def encoder():
    torch.manual_seed(3)
    return VisionTransformer(**MODEL, init="trunc_normal").requires_grad_(False)


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, 24, 24, 3), dtype=torch.uint8, generator=generator(1))


# Mixing


def test_soft_targets_are_one_hot_smoothed():
    labels = torch.tensor([2, 0, 4])
    expected = np.eye(5)[[2, 0, 4]] * 0.9 + 0.1 / 5
    np.testing.assert_allclose(soft_targets(labels, 5, 0.1).numpy(), expected, rtol=1e-6)
    assert torch.equal(soft_targets(labels, 5, 0.0), torch.eye(5)[labels])


@pytest.mark.parametrize("share", [0.75, 0.125, 0.0, 1.0])
def test_mixup_is_the_rounded_weighted_sum(images, share):
    """A share of few bits makes every sum exact, so that numpy's rounding is the only rounding."""
    targets = soft_targets(torch.arange(6), 6, 0.0)
    mixed, shares = mixup(images, targets, share)
    plain = images.numpy().astype(np.float64)
    expected = np.rint(share * plain + (1 - share) * plain[::-1])
    assert np.array_equal(mixed.numpy(), expected)
    np.testing.assert_array_equal(shares.numpy(), share * np.eye(6) + (1 - share) * np.eye(6)[::-1])


def test_mixup_of_any_share_is_within_half_a_level(images):
    share = 0.3137
    mixed, targets = mixup(images, soft_targets(torch.arange(6), 6, 0.1), share)
    plain = images.numpy().astype(np.float64)
    error = mixed.numpy() - (share * plain + (1 - share) * plain[::-1])
    assert np.abs(error).max() <= 0.5 + 255 * 2**-22  # products and their sum in fp32
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


@pytest.mark.parametrize("box", [Box(0, 24, 0, 24), Box(5, 5, 0, 9), Box(0, 7, 20, 24), Box(3, 17, 4, 11)])
def test_cutmix_shares_are_the_areas(box):
    """Every picture is filled with its number, so that each pixel says where it comes from."""
    numbers = torch.arange(6, dtype=torch.uint8)
    images = numbers[:, None, None, None].expand(6, 24, 24, 3)
    mixed, targets = cutmix(images, torch.eye(6), box)
    for image in range(6):
        inside = np.zeros((24, 24), dtype=bool)
        inside[box.top : box.bottom, box.left : box.right] = True
        expected = np.where(inside, 5 - image, image)
        assert all(np.array_equal(mixed[image, ..., channel].numpy(), expected) for channel in range(3))
        own = (mixed[image, ..., 0] == image).sum().item() / 24**2
        assert targets[image, image].item() == np.float32(own)
        assert targets[image, 5 - image].item() == np.float32(1 - own)


def test_boxes_are_cut_at_the_edges():
    drawing, again, clipped = generator(5), generator(5), 0
    for number in range(200):
        share = number / 200
        box = draw_box(20, 30, share, drawing)
        y, x = (int(torch.randint(length, (1,), generator=again)) for length in (20, 30))
        tall, wide = int(20 * math.sqrt(1 - share)), int(30 * math.sqrt(1 - share))
        rows = np.clip([y - tall // 2, y - tall // 2 + tall], 0, 20)
        columns = np.clip([x - wide // 2, x - wide // 2 + wide], 0, 30)
        assert box == (*rows, *columns)
        assert box.area <= tall * wide
        clipped += box.area < tall * wide
    assert 0 < clipped < 200


def test_shares_have_the_mean_and_variance_of_beta():
    """Of Beta(a, a): 1/2 and 1 / (4 (2a + 1)); its fourth central moment is below the variance over 4."""
    drawing, draws = generator(7), 4000
    for alpha in (0.8, 1.0):
        shares = np.array([draw_share(alpha, drawing) for _ in range(draws)])
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(shares.mean() - 0.5) < 4 * math.sqrt(variance / draws)
        assert abs(((shares - 0.5) ** 2).mean() - variance) < 4 * math.sqrt(variance / 4 / draws)


def test_mix_takes_what_is_on_and_sums_to_one(images):
    targets = soft_targets(torch.arange(6), 6, 0.1)
    untouched = mix(images, targets, mixup_alpha=0, cutmix_alpha=0, generator=generator())
    assert untouched[0] is images and untouched[1] is targets

    def every_pixel_is_one_of_the_two(mixed):
        return bool(((mixed == images) | (mixed == images.flip(0))).all())

    cut = blended = 0
    for seed in range(20):
        mixed, shares = mix(images, targets, mixup_alpha=0.8, cutmix_alpha=1.0, generator=generator(seed))
        again = mix(images, targets, mixup_alpha=0.8, cutmix_alpha=1.0, generator=generator(seed))
        assert torch.equal(mixed, again[0]) and torch.equal(shares, again[1])
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        cut += every_pixel_is_one_of_the_two(mixed)
        only_cut, _ = mix(images, targets, mixup_alpha=0, cutmix_alpha=1.0, generator=generator(seed))
        assert every_pixel_is_one_of_the_two(only_cut)
        only_mixed, _ = mix(images, targets, mixup_alpha=0.8, cutmix_alpha=0, generator=generator(seed))
        blended += not every_pixel_is_one_of_the_two(only_mixed)
    assert blended >= 15  # but for shares that round to nothing
    assert 2 <= cut <= 18  # CutMix in half of 20: 4 sigma of the binomial is 8.9


# Stochastic depth


def test_drop_path_keeps_the_mean():
    depth, rate, count = 5, 0.4, 20_000
    factors = drop_path(depth, count, rate, generator())
    for block in range(depth):
        p = rate * block / (depth - 1)
        kept = factors[block][factors[block] > 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
        deviation = math.sqrt(p / (1 - p) / count)
        assert (factors[block].mean(1) - 1).abs().max().item() <= 4 * deviation + 1e-6
    assert drop_path(depth, count, 0.0, generator()) is None


def test_with_nothing_dropped_it_is_the_encoders_own_forward(encoder, images):
    own = encoder(images, dense_plan(6, 16, images.device))
    assert torch.equal(trunk(encoder, images, None), own)
    assert torch.equal(trunk(encoder, images, torch.ones(3, 2, 6)), own)


def test_branches_are_multiplied_one_by_one(encoder, images):
    branches = drop_path(3, 6, 0.6, generator(2))
    assert 0 < int((branches == 0).sum()) < branches.numel()
    x = encoder.tokens(images, dense_plan(6, 16, images.device))
    for block, (attention, mlp) in zip(encoder.blocks, branches):
        x = x + attention[:, None, None] * block.attn(block.norm1(x))
        x = x + mlp[:, None, None] * block.mlp(block.norm2(x))
    torch.testing.assert_close(trunk(encoder, images, branches), x)
    nothing = trunk(encoder, images, torch.zeros(3, 2, 6))
    assert torch.equal(nothing, encoder.tokens(images, dense_plan(6, 16, images.device)))


# Rates per layer


def test_groups_follow_the_formula(encoder):
    classifier = Classifier(encoder, 4, generator())
    groups = parameter_groups(classifier, 0.5, 0.05)
    found = {id(p): (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    expected = {}
    for name, parameter in classifier.named_parameters():
        if name.startswith("encoder.norm."):
            continue  # not used: the mean has a norm of its own
        layer = 4
        if name.startswith("encoder."):
            layer = int(name.split(".")[2]) + 1 if ".blocks." in name else 0
        free = parameter.dim() == 1 or name in ("encoder.cls_token", "encoder.pos_embed")
        expected[id(parameter)] = (0.5 ** (4 - layer), 0.0 if free else 0.05)
    assert found == expected


def timm_model(timm, encoder):
    """timm's own model that pools the patch tokens, with the encoder's weights."""
    state, arguments = to_timm(encoder.state_dict(), MODEL)
    model = timm.models.vision_transformer.VisionTransformer(**arguments | {"num_classes": 4, "global_pool": "avg"})
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert {*missing} == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert {*unexpected} == {"norm.weight", "norm.bias"}
    return model


def test_groups_are_timms(encoder, timm):
    model = timm_model(timm, encoder)
    names = {id(p): name for name, p in model.named_parameters()}
    theirs = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in importlib.import_module("timm.optim").param_groups_layer_decay(
            model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.65
        )
        for p in group["params"]
    }
    classifier = Classifier(encoder, 4, generator())
    names = {id(p): timm_name(name) for name, p in classifier.named_parameters()}
    ours = {
        names[id(p)]: (group["scale"], group["weight_decay"])
        for group in parameter_groups(classifier, 0.65, 0.05)
        for p in group["params"]
    }
    assert ours == {name: (pytest.approx(scale), decay) for name, (scale, decay) in theirs.items()}


def timm_name(name):
    if name.startswith("encoder."):
        return name.removeprefix("encoder.")
    return name if name.startswith("head.") else f"fc_{name}"


def test_logits_are_timms(encoder, images, timm):
    classifier = Classifier(encoder, 4, generator())
    torch.nn.init.normal_(classifier.head.weight, generator=generator(4))
    model = timm_model(timm, encoder).eval()
    with torch.no_grad():
        model.head.weight.copy_(classifier.head.weight)
        model.head.bias.copy_(classifier.head.bias)
        mean, std = torch.tensor(MODEL["mean"]), torch.tensor(MODEL["std"])
        expected = model(((images / 255 - mean) / std).permute(0, 3, 1, 2))
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-4)


# Few labels


def test_shots_are_exactly_so_many_of_each_class():
    labels = torch.randint(0, 7, (500,), generator=generator())
    smaller = None
    for shots in (1, 5, 10):
        drawn = draw_shots(labels, shots, seed=3)
        assert len(drawn) == len(set(drawn.tolist())) == 7 * shots
        assert labels[drawn].tolist() == [label for label in range(7) for _ in range(shots)]
        assert torch.equal(drawn, draw_shots(labels, shots, seed=3))
        assert smaller is None or {*smaller.tolist()} < {*drawn.tolist()}
        smaller = drawn
    assert not torch.equal(draw_shots(labels, 5, seed=3), draw_shots(labels, 5, seed=4))


def test_shots_refuse_what_cannot_be():
    labels = torch.tensor([0, 0, 0, 5, 5])
    with pytest.raises(UserError, match="only 2 training images of class 5"):
        draw_shots(labels, 3, seed=0)
    with pytest.raises(UserError, match="must be 1 or more"):
        draw_shots(labels, 0, seed=0)


def test_a_subset_is_its_images_of_the_source(photo_folder):
    source = open_source(str(photo_folder))
    subset = Subset(source, torch.tensor([5, 20, 5]))
    assert len(subset) == 3
    assert [subset.label(i) for i in range(3)] == [source.label(i) for i in (5, 20, 5)]
    assert [subset.path_of(i) for i in range(3)] == [source.path_of(i) for i in (5, 20, 5)]
    assert subset.read(1) == source.read(20)
    for name in ("name", "class_names", "image_size", "patch_size", "channels", "mean", "std"):
        assert getattr(subset, name) == getattr(source, name)
