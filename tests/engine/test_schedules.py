"""Schedules, throughput and the decisions that are made before a run."""

import math

import pytest

from misplace.engine.commands.pretrain import configure
from misplace.engine.data import open_source
from misplace.engine.errors import UserError
from misplace.engine.meter import Meter
from misplace.engine.optim import cosine_with_warmup
from misplace.engine.resolve import horizon, next_run_folder, resolve


def test_learning_rate_rises_linearly_and_falls_by_half_a_cosine():
    rates = [cosine_with_warmup(p, peak=2.0, warmup=0.2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0])
    published = cosine_with_warmup(170 / 300, peak=1.0, warmup=40 / 300)
    assert published == pytest.approx(0.5 * (1 + math.cos(math.pi * (170 - 40) / (300 - 40))))


def test_meter_counts_images_once_and_leaves_out_what_is_excluded():
    times = iter([0.0, 1.0, 2.0, 3.0, 13.0, 14.0, 14.0])
    meter = Meter(batch_size=100, now=lambda: next(times))
    with meter.waiting():  # 1 to 2: one second of waiting
        pass
    meter.count_step()
    with meter.excluded():  # 3 to 13
        pass
    assert meter.read() == {"images_per_s": pytest.approx(25.0), "data_wait": pytest.approx(0.25)}


def test_sizes_come_from_the_source_and_length_from_epochs(images):
    source = open_source(str(images))
    config = configure(["moco_v3", "--model", "nano", "--data", str(images), "--epochs", "2.5", "--device", "cpu"])
    with pytest.raises(UserError, match="48 images do not fill a batch of 128"):
        resolve(config, source)
    short = ["--epochs", "2.5", "--data.batch-size", "8"]
    config = configure(["moco_v3", "--model", "nano", *short, "--data", str(images)])
    resolved = resolve(config, source)
    assert (resolved.model.image_size, resolved.model.patch_size) == (224, 16)
    assert horizon(resolved, source).steps == round(2.5 * 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.image-size 25 --model.patch-size 6", "not a multiple"),
        ("--model.image-size 4 --model.patch-size 6", "smaller than a patch"),
        ("--model.num-heads 5", "must divide the width 192"),
        ("--epochs 0", "--epochs 0.0: must be above zero"),
        ("--budget soon", "duration 'soon'"),
        ("--device quantum", "not a device"),
        ("--pretext.drop-rate 0.99 --model.image-size 24 --model.patch-size 6", "keeps none of 16 patches"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(images, options, message):
    arguments = ["moco_v3_dilemma", *["--model", "nano", "--data.batch-size", "8"], *options.split()]
    with pytest.raises(UserError, match=message):
        resolve(configure(arguments), open_source(str(images)))


def test_run_folders_are_numbered(tmp_path):
    (tmp_path / "moco_v3-1").mkdir()
    assert next_run_folder(tmp_path, "moco_v3").name == "moco_v3-2"
