"""The configuration: from a command line, to JSON and back, and what it refuses."""

import json

import pytest

from misplace.engine.commands.pretrain import configure
from misplace.engine.config import Config, first_difference, from_plain, to_plain
from misplace.engine.errors import UserError
from misplace.engine.pretexts import DilemmaConfig, NoPretextConfig
from misplace.engine.recipes import RECIPES


def test_recipes_are_the_published_settings():
    config = configure(["moco_v3", "--model", "base"])
    assert (config.optim.base_lr, config.optim.weight_decay, config.framework.temperature) == (
        1.5e-4,
        0.1,
        0.2,
    )
    assert (config.framework.hidden_width, config.framework.output_width) == (4096, 256)
    assert config.run.epochs == 300 and isinstance(config.pretext, NoPretextConfig)
    assert config.framework.momentum == 0.99 and config.optim.betas == (0.9, 0.999)
    assert configure(["moco_v3", "--model", "small"]).model.num_heads == 12
    inits = [configure(["moco_v3", "--model", size]).model.init for size in ("small", "base", "nano")]
    assert inits == ["xavier_uniform", "xavier_uniform", "uniform_fan_in"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_and_its_dilemma_form_differ_in_the_pretext_alone(name):
    framework = name.removesuffix("_dilemma")
    plain, with_dilemma = to_plain(configure([framework])), to_plain(configure([framework + "_dilemma"]))
    assert with_dilemma["pretext"] == {"kind": "dilemma", "drop_rate": 0.75, "wrong_rate": 0.2, "weight": 1.0}
    assert plain["pretext"] == {"kind": "none", "drop_rate": 0.75 if framework == "mae" else 0.0}
    for changed in ("pretext", "recipe"):
        plain.pop(changed), with_dilemma.pop(changed)
    assert plain == with_dilemma
    assert configure([name]).recipe == name


@pytest.mark.parametrize("name", RECIPES)
def test_small_settings_suit_poses_at_the_same_learning_rate(name):
    poses, other = configure([name, "--model", "nano"]), configure([name, "--model", "nano", "--data", "x"])
    assert configure([name, "--model=nano", "--data=poses:/a/folder"]).data.augment == poses.data.augment
    assert poses.data.batch_size == 64 and not poses.model.freeze_patch_projection
    assert poses.optim.base_lr * poses.data.batch_size == other.optim.base_lr * other.data.batch_size
    gray, rate = poses.data.augment.grayscale_p, poses.pretext.drop_rate
    if name.startswith("mae"):
        assert (gray, rate) == (0.0, 0.75)
    else:
        assert (gray, rate) == (0.75, 0.5 if name.endswith("_dilemma") else 0.0)


def test_published_settings_are_the_same_on_any_data():
    on = {source: to_plain(configure(["moco_v3_dilemma", "--data", source])) for source in ("poses", "x")}
    assert first_difference(on["poses"], on["x"]) == "data.source ('poses' and 'x')"
    on["x"]["data"]["source"] = "poses"
    assert on["poses"] == on["x"]


def test_of_options_given_twice_the_last_one_decides():
    twice = ["moco_v3_dilemma", "--data", "poses", "--model", "small", "--model", "nano", "--data.source=x"]
    assert configure(twice) == configure(["moco_v3_dilemma", "--model", "nano", "--data", "x"])


def test_overrides_are_strict_and_nested():
    config = configure(
        ["moco_v3_dilemma", "--model=nano", "--pretext.drop-rate", "0.5", "--budget", "5m", "--data", "x"]
    )
    assert config.pretext == DilemmaConfig(drop_rate=0.5)
    assert config.run.budget == "5m" and config.data.source == "x" and config.model.name == "nano"
    assert configure(["moco_v3", "--steps", "7"]).run.epochs is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name a recipe"),
        ("moco", "unknown recipe 'moco'; one of: moco_v3, moco_v3_dilemma"),
        ("moco_v3 --optim.lr 1", r"--optim.lr.*did you mean --optim.base-lr"),
        ("moco_v3 --optim.base-lr fast", "--optim.base-lr.*fast"),
        ("moco_v3 stray", "stray"),
        ("moco_v3 --model giant", "giant"),
        ("moco_v3 --pretext.wrong-rate .5", "--pretext.wrong-rate"),
        ("mae --pretext.drop-rate -1", "drop-rate -1"),
        ("moco_v3 --optim.weight-decay 0 --optim.final-weight-decay 1", "final-weight-decay"),
        ("moco_v3_dilemma --pretext.drop-rate 1.0", "drop-rate 1.0"),
        ("moco_v3_dilemma --pretext.wrong-rate 1.5", "wrong-rate 1.5"),
        ("moco_v3 --steps 5 --budget 5m", "--steps and --budget"),
        ("moco_v3 --steps 0", "--steps 0"),
        ("moco_v3 --seed -1", "--seed -1"),
        ("moco_v3 --data.batch-size 1", "--data.batch-size 1"),
        ("moco_v3 --run.knn-every 2", "--run.knn-every"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        configure(arguments.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_survives_json(name):
    config = configure([name, "--model", "nano", "--out", "runs/x"])
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(Config, plain) == config


def test_unknown_keys_and_differences_are_named():
    plain = to_plain(configure(["moco_v3"]))
    with pytest.raises(UserError, match="unknown key 'colour'"):
        from_plain(Config, {**plain, "colour": 1})
    other = {**plain, "optim": {**plain["optim"], "base_lr": 1.0}}
    assert first_difference(plain, plain) is None
    assert first_difference(plain, other) == "optim.base_lr (0.00015 and 1.0)"


def test_dinos_published_settings():
    config = configure(["dino", "--model", "small"])
    optim, augment = config.optim, config.data.augment
    assert (optim.base_lr, optim.final_lr, optim.weight_decay, optim.final_weight_decay) == (5e-4, 1e-6, 0.04, 0.4)
    assert (optim.clip_norm, optim.clip_each, optim.decay_vectors) == (3.0, True, False)
    assert (augment.crop_scale, augment.local_scale) == ((0.4, 1.0), (0.05, 0.4))
    assert (augment.local_views, augment.with_local_size(224, 16).local_size) == (8, 96)
    assert config.model.learned_position and not config.model.freeze_patch_projection
    assert config.model.num_heads is None and config.model.init == "trunc_normal"


def test_maes_published_settings():
    config = configure(["mae", "--model", "base"])
    optim, augment = config.optim, config.data.augment
    assert (optim.base_lr, optim.betas, optim.weight_decay, optim.decay_vectors) == (1.5e-4, (0.9, 0.95), 0.05, False)
    assert config.pretext == NoPretextConfig(drop_rate=0.75)
    assert augment.crop_scale == (0.2, 1.0) and augment.flip_p == 0.5
    assert augment.jitter_p == augment.grayscale_p == augment.blur_p[0] == augment.solarize_p[0] == 0
    assert config.model.init == "xavier_whole_qkv" and not config.model.freeze_patch_projection


def test_simclrs_published_settings():
    augment = configure(["simclr", "--model", "small"]).data.augment
    assert (augment.brightness, augment.contrast, augment.saturation, augment.hue) == (0.8, 0.8, 0.8, 0.2)
    assert augment.blur_p == (0.5, 0.5) and augment.solarize_p == (0.0, 0.0) and augment.crop_scale == (0.08, 1.0)
