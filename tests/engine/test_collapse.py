"""Collapse is named when it is there, and only then."""

import dataclasses
import math

import pytest
from PIL import Image

from misplace.engine.collapse import ChanceDetector, CollapseDetector, chance_bce
from misplace.engine.frameworks import FRAMEWORKS
from misplace.engine.models import VisionTransformer
from misplace.engine.trainer import pretrain
from misplace.engine.watches import watches

SMALL = {
    "image_size": 8, "patch_size": 4, "channels": 3, "width": 16, "depth": 1, "num_heads": 2,
    "mean": (0.5,) * 3, "std": (0.25,) * 3,
}  # fmt: skip

MOCO = 4 * 0.2 * math.log(256)  # 4.4361


def feed(detector, values, start=0):
    told = [detector.update(start + i, value) for i, value in enumerate(values)]
    return [(start + i, sentence) for i, sentence in enumerate(told) if sentence]


def test_a_loss_at_its_signature_is_named_once_with_the_number():
    told = feed(CollapseDetector("contrast", MOCO, window=20, grace=100), [MOCO * 1.001] * 300)
    assert [step for step, _ in told] == [100]
    sentence = told[0][1]
    assert "contrast" in sentence and "4.4361" in sentence and "4.4406" in sentence and "try" in sentence
    assert "\n" not in sentence


def test_a_falling_loss_and_the_grace_period_are_not_named():
    fresh = [MOCO] * 100
    falling = [MOCO * (0.99 - 0.001 * i) for i in range(300)]
    assert feed(CollapseDetector("contrast", MOCO, window=20, grace=150), fresh + falling) == []
    assert feed(CollapseDetector("contrast", MOCO, window=20, grace=100), [MOCO] * 100) == []


def test_single_values_at_the_signature_are_not_named():
    values = [MOCO if i % 3 == 0 else MOCO * 0.8 for i in range(300)]
    assert feed(CollapseDetector("contrast", MOCO, window=20, grace=0), values) == []


def test_a_second_collapse_is_named_again():
    values = [MOCO] * 50 + [MOCO / 2] * 50 + [MOCO] * 50
    told = feed(CollapseDetector("contrast", MOCO, window=20, grace=0), values)
    assert len(told) == 2 and told[0][0] == 19 and 100 < told[1][0] < 120


@pytest.mark.parametrize(("wrong_rate", "chance"), [(0.2, 0.5004), (0.5, math.log(2)), (0.0, 0.0), (1.0, 0.0)])
def test_chance(wrong_rate, chance):
    assert chance_bce(wrong_rate) == pytest.approx(chance, abs=5e-5)


@pytest.mark.parametrize(("bce", "named"), [(0.5004, True), (0.53, True), (0.4985, True), (0.49, False), (0.2, False)])
def test_a_bce_at_chance_is_named(bce, named):
    told = feed(ChanceDetector(0.2, window=20, grace=100), [bce] * 200)
    assert len(told) == named
    if named:
        assert f"{bce:.4f}" in told[0][1] and "0.5004" in told[0][1] and "wrong rate 0.2" in told[0][1]


def test_a_bce_that_wobbles_about_the_border_is_named_once_until_it_has_left():
    wobble = ([0.4985] * 20 + [0.4970] * 20) * 5
    detector = ChanceDetector(0.2, window=20, grace=0)
    assert len(feed(detector, wobble)) == 1
    assert feed(detector, [0.48] * 40) == []
    assert len(feed(detector, wobble)) == 1


def test_without_wrong_tokens_nothing_is_named():
    assert feed(ChanceDetector(0.0, window=5, grace=0), [0.0] * 20) == []


@pytest.mark.parametrize("recipe", ["moco_v3", "simclr", "dino"])
def test_a_run_on_images_that_are_all_alike_is_told_of_its_collapse(runs, tmp_path, capsys, recipe):
    """One flat grey in every image: one embedding. DINO's classes also stay alike at a temperature of 1e6."""
    for i in range(8):
        (tmp_path / "grey" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (128, 128, 128)).save(tmp_path / "grey" / str(i % 2) / f"{i}.png")
    config = runs.tiny_config(recipe, tmp_path / "grey", tmp_path / "run", steps=110)
    augment = dataclasses.replace(config.data.augment, jitter_p=0.0)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=augment))
    if recipe == "dino":
        config = dataclasses.replace(config, framework=dataclasses.replace(config.framework, student_temperature=1e6))
    pretrain(config)
    said = capsys.readouterr().out
    expected = FRAMEWORKS[type(config.framework)](config.framework, VisionTransformer(**SMALL)).collapse_loss(
        runs.BATCH
    )
    assert said.count("collapse: the median") == 1 and f"it is {expected:.4f} when all images" in said


def test_mae_has_no_loss_of_a_collapse(runs, images, tmp_path):
    config = runs.tiny_config("mae_dilemma", images, tmp_path)
    framework = FRAMEWORKS[type(config.framework)](config.framework, VisionTransformer(**SMALL))
    found = watches(config, framework)
    assert len(found) == 1  # the BCE at chance
