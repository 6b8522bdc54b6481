"""The finetune protocol on made images: what can be learnt is learnt, what cannot is not, and nothing else changes."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from misplace.engine.cli import main
from misplace.engine.data import Batch, Failure
from misplace.engine.errors import UserError
from misplace.engine.evaluation import Split, Study, encoder_subject, open_study_splits, pixel_subject
from misplace.engine.evaluation.protocols import finetune
from misplace.engine.evaluation.protocols.finetune import protocol
from misplace.engine.evaluation.protocols.finetune.classifier import build_classifier
from misplace.engine.evaluation.protocols.finetune.options import (
    MAE,
    SMALL_DATA,
    Options,
    resolve_options,
    settings_for,
)
from misplace.engine.evaluation.protocols.finetune.pace import Pace
from misplace.engine.evaluation.protocols.finetune.training import Training
from misplace.engine.models import VisionTransformer, copied_parameters
from misplace.engine.trainer import pretrain

CPU = torch.device("cpu")
QUICK = Options(epochs=1, least_steps=60, batch_size=8, base_lr=0.03, workers=0, precision="fp32")
MODEL = {
    "image_size": 24, "patch_size": 6, "channels": 3, "width": 64, "depth": 2, "num_heads": 2,
    "mean": [0.5] * 3, "std": [0.25] * 3,
}  # fmt: skip


class MadeSource:
    """Raw pictures uint8 [n, 24, 24, 3] with labels."""

    name, image_size, patch_size, channels = "made", 24, 6, 3
    mean, std = (0.5,) * 3, (0.25,) * 3

    def __init__(self, pictures, labels, classes):
        self.pictures, self.labels = pictures, labels
        self.class_names = tuple(map(str, range(classes)))

    def __len__(self):
        return len(self.pictures)

    def read(self, index):
        return self.pictures[index]

    def path_of(self, index):
        return f"made[{index}]"

    def label(self, index):
        return int(self.labels[index])


def grays(count, classes=2, seed=0):
    """Noise whose mean level says the class, the classes in turn."""
    labels = np.arange(count) % classes
    level = (labels * 2 + 1) * 128 / classes
    noise = np.random.default_rng(seed).normal(0, 10, (count, 24, 24, 3))
    return MadeSource((level[:, None, None, None] + noise).clip(0, 255).astype(np.uint8), labels, classes)


def subject(name="trained", seed=0):
    torch.manual_seed(seed)
    return encoder_subject(name, VisionTransformer(**MODEL, init="trunc_normal").requires_grad_(False))


def study_of(train, test, subjects=None, lines=None):
    splits = [Split(name, source, torch.arange(len(source))) for name, source in (("train", train), ("test", test))]
    return Study(subjects or (subject(),), *splits, CPU, 0, say=([] if lines is None else lines).append)


def test_separable_images_are_learnt_by_every_encoder():
    subjects = (subject("trained"), subject("random", 1), pixel_subject(24, 6))
    lines = []
    study = study_of(grays(64, 4), grays(60, 4, seed=1), subjects, lines)
    scores = finetune.run(study, dataclasses.replace(QUICK, least_steps=100))
    assert [(s.encoder, s.measure, s.value, s.low, s.high) for s in scores] == [
        ("trained", "finetune", 1.0, 1.0, 1.0),
        ("random", "finetune", 1.0, 1.0, 1.0),
    ]
    assert all(s.chance == 0.25 for s in scores)
    assert "pixels has no encoder" in lines[0]
    assert "epochs 1, batch 8, rate 0.00094 at the head, layer decay 0.75" in lines[1]
    assert "208 steps of 8 images" in lines[2]  # 100 at least, in 13 epochs of 8, of two encoders


def test_labels_that_say_nothing_stay_at_chance():
    """Held-out labels are drawn apart from the pictures, so whatever is predicted, hits are binomial."""
    rng, count = np.random.default_rng(0), 400
    train, test = grays(64, 4), grays(count, 4, seed=1)
    train.labels, test.labels = rng.integers(0, 4, 64), rng.integers(0, 4, count)
    (found,) = finetune.run(study_of(train, test), QUICK)
    assert abs(found.value - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / count)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_one_seed_one_answer_and_the_encoder_stays_as_it_is(precision):
    options = dataclasses.replace(QUICK, precision=precision, mixup=0.8, cutmix=1.0, drop_path=0.3, least_steps=10)
    trained = subject()
    before = {name: tensor.clone() for name, tensor in trained.encoder.state_dict().items()}
    settings = settings_for(options, 64, 48)
    weights = []
    for position in range(2):
        torch.manual_seed(position)  # the global generator has no say
        study = study_of(grays(48), grays(8, seed=1), (trained,))
        (job,) = protocol.make_jobs(study, (), settings, 24)
        pace = Pace(job.steps, settings.batch_size, study.say)
        classifier = protocol.fine_tune(study, trained, job, settings, options, pace)
        assert all(torch.equal(low, master.to(low.dtype)) for master, low in copied_parameters(classifier))
        weights.append(classifier.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trained.encoder.parameters())
    moved = {name for name in before if not torch.equal(before[name], weights[0][f"encoder.{name}"])}
    assert moved == before.keys() - {"norm.weight", "norm.bias"}  # also the patch projection that was frozen


def test_low_shots_are_rows_of_their_own():
    study = study_of(grays(40, 4), grays(20, 4, seed=1))
    options = dataclasses.replace(QUICK, shots=(1, 3), least_steps=20)
    assert [s.measure for s in finetune.run(study, options)] == ["finetune 1-shot", "finetune 3-shot"]
    for job, shots in zip(protocol.make_jobs(study, (1, 3), settings_for(options, 64, 40), 24), (1, 3)):
        chosen = {*job.indices.tolist()}
        assert sorted(study.train.source.label(i) for i in chosen) == sorted([*range(4)] * shots)
        assert job.labels.tolist() == [study.train.source.label(i) for i in job.indices.tolist()]
        assert len(job.indices) >= 8 and job.steps >= 20


def test_shots_that_cannot_be_read_are_drawn_again(corrupt_folder):
    train, test = open_study_splits(str(corrupt_folder), num_train=26, num_test=6)
    study = Study((subject(),), train, test, CPU, say=lambda _: None)
    labels = study.labels(train, train.indices)
    readable = [i for i in range(len(labels)) if "bad" not in train.source.path_of(int(train.indices[i]))]
    good = dataclasses.replace(study, train=train._replace(indices=train.indices[readable]))
    drawn = protocol.draw_readable(good, labels[readable], 2, 24)
    assert len(drawn) == 4
    with pytest.raises(UserError, match="of class 0"):  # every image of the class called bad
        protocol.draw_readable(study, labels, 2, 24)


def test_what_stands_in_for_an_unreadable_image_is_not_learnt():
    trained, settings = subject(), dataclasses.replace(SMALL_DATA, batch_size=4)
    classifier = build_classifier(trained.encoder, 2, torch.float32, torch.Generator())
    images = torch.from_numpy(grays(4).pictures)

    def loss(batch, labels):
        training = Training(classifier, labels, settings, steps=1, generator=torch.Generator().manual_seed(0))
        torch.nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(0))
        return training.loss(batch).item()

    index, labels = torch.tensor([3, 1, 0, 2]), torch.tensor([0, 1, 1, 0])
    failures = (Failure(1, "made[1]", "gone"), Failure(7, "made[7]", "gone"))
    with_gap = loss(Batch((images,), index, 0, failures), labels)
    without = loss(Batch((images[[0, 2, 3]],), index[[0, 2, 3]], 0, ()), labels)
    assert with_gap == without
    with pytest.raises(UserError, match="whole batch"):
        loss(Batch((images[1:2],), index[1:2], 0, failures), labels)


def test_rates_rise_and_fall_for_every_layer_alike():
    classifier = build_classifier(subject().encoder, 2, torch.float32, torch.Generator())
    settings = dataclasses.replace(SMALL_DATA, base_lr=0.08, batch_size=64, layer_decay=0.5, warmup=0.2)
    training = Training(classifier, torch.zeros(4), settings, steps=10, generator=torch.Generator())
    for progress, expected in ((0.0, 0.0), (0.1, 0.01), (0.2, 0.02), (0.6, 0.01), (1.0, 0.0)):
        training.set_rate(progress)
        rates = {group["lr"] for group in training.optimizer.param_groups}
        assert sorted(rates) == pytest.approx(sorted({expected * 0.5**n for n in range(4)}), abs=1e-12)


def test_settings_are_named_and_can_be_changed():
    assert settings_for(Options(), 192, 5000) == SMALL_DATA
    assert settings_for(Options(), 768, 50_000) == settings_for(Options(settings="mae"), 192, 10) == MAE
    changed = settings_for(Options(settings="mae", epochs=3, mixup=0.0), 192, 10)
    assert changed == dataclasses.replace(MAE, epochs=3, mixup=0.0)


@pytest.mark.parametrize("options", [Options(), Options(settings="mae", epochs=3), QUICK])
@pytest.mark.parametrize(("width", "images"), [(192, 5000), (768, 50_000)])
def test_resolved_options_leave_nothing_open_and_train_the_same(options, width, images):
    resolved = resolve_options(options, width, images)
    assert resolved.settings != "auto"
    assert [name for name, value in vars(resolved).items() if value is None] == [
        name for name, value in vars(options).items() if value is None and name == "workers"
    ]
    assert settings_for(resolved, 64, 10) == settings_for(options, width, images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--finetune.epochs 0: must be 1 or more"),
        ({"least_steps": -1}, "--finetune.least-steps -1: must be 0 or more"),
        ({"batch_size": 1}, "--finetune.batch-size 1"),
        ({"base_lr": 0.0}, "--finetune.base-lr 0.0: must be above 0"),
        ({"base_lr": math.inf}, "--finetune.base-lr inf: must be finite"),
        ({"layer_decay": 1.5}, "--finetune.layer-decay 1.5"),
        ({"drop_path": 1.0}, "--finetune.drop-path 1.0: must be 0 to 0.9"),
        ({"mixup": -1.0}, "--finetune.mixup -1.0"),
        ({"smoothing": math.nan}, "--finetune.smoothing nan"),
        ({"workers": -1}, "--finetune.workers -1"),
        ({"shots": (5, 0)}, "--shots 0: must be 1 or more"),
        ({"shots": (33,)}, "only 32 training images of class 0"),
        ({"base_lr": 1e30}, "lower --finetune.base-lr"),
    ],
)
def test_options_that_cannot_be(options, message):
    study = study_of(grays(64), grays(8))
    with pytest.raises(UserError, match=message):
        finetune.run(study, dataclasses.replace(QUICK, **options))


def test_labels_that_cannot_be():
    unlabelled, one_class = grays(16), grays(16)
    unlabelled.labels, one_class.labels = np.full(16, -1), np.zeros(16)
    with pytest.raises(UserError, match="has no labels"):
        finetune.run(study_of(unlabelled, grays(4)), QUICK)
    with pytest.raises(UserError, match="two classes or more"):
        finetune.run(study_of(one_class, grays(4)), QUICK)


def test_lines_come_at_the_end_of_an_epoch_and_not_too_often():
    lines, clock = [], iter(range(0, 10_000, 3))
    pace = Pace(40, 8, lines.append, now=lambda: next(clock))
    for step in range(1, 41):
        pace.step(torch.tensor(0.5))
        if step % 4 == 0:
            pace.epoch("row", step // 4, 10)
    assert lines[0].startswith("finetune: 40 steps of 8 images, about ")
    assert all(line.startswith("row: epoch ") and "loss 0.500" in line for line in lines[1:])
    assert 0 < len(lines) - 1 < 10


def test_the_command(runs, images, tmp_path, capfd):
    run = pretrain(runs.tiny_config("moco_v3_dilemma", images, tmp_path / "run", steps=2))
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    arguments = ["--protocol", "finetune", "--num-train", "32", "--num-test", "16", "--device", "cpu"]
    arguments += ["--shots", "1,2", "--finetune.batch-size", "4", "--finetune.least-steps", "3"]
    arguments += ["--finetune.workers", "1"]
    assert main(["evaluate", str(run), *arguments]) == 0
    line = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert [(row["encoder"], row["measure"]) for row in line["rows"]] == [
        (encoder, f"finetune {shots}-shot") for shots in (1, 2) for encoder in ("trained", "random")
    ]
    assert line["options"]["shots"] == [1, 2] and line["protocol"] == "finetune"
    assert line["options"]["settings"] == "small_data" and line["options"]["base_lr"] == SMALL_DATA.base_lr
    assert files == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
