"""Who is evaluated: the trained encoder from wherever it is saved, the one a run began with, raw pixels."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from misplace.engine import trainer
from misplace.engine.cli import main
from misplace.engine.data import open_source
from misplace.engine.encoder_file import read_encoder
from misplace.engine.errors import UserError
from misplace.engine.evaluation import Study, encoder_subject, open_study_splits, pixel_subject, subjects_of
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method
from misplace.engine.resolve import resolve

CPU = torch.device("cpu")


@pytest.fixture
def run(runs, images, tmp_path) -> Path:
    """A run of four steps."""
    return trainer.pretrain(runs.tiny_config("moco_v3_dilemma", images, tmp_path / "run", seed=5))


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_exported_file_gives_the_runs_own_features(run, images, tmp_path, pictures):
    assert main(["export", str(run), str(tmp_path / "encoder.safetensors")]) == 0
    first, second = (
        encoder_subject("trained", read_encoder(path).build(CPU)) for path in (run, tmp_path / "encoder.safetensors")
    )
    for ours, theirs in zip(first.tokens(pictures), second.tokens(pictures)):
        assert torch.equal(ours, theirs)
    assert first.digest == second.digest


def test_random_is_what_the_run_began_with(run, runs, images, pictures, tmp_path):
    config = runs.tiny_config("moco_v3_dilemma", images, tmp_path / "again", seed=5)
    source = open_source(str(images))
    config = resolve(config, source)
    began = build_method(config, source, resolve_implementations(CPU)).encoder
    trained, random, _ = subjects_of(read_encoder(run), CPU)
    for name, tensor in random.encoder.state_dict().items():
        assert torch.equal(tensor, began.state_dict()[name])
    assert random.digest != trained.digest


def test_the_last_layer_is_what_the_encoder_ends_with(run, pictures):
    trained = subjects_of(read_encoder(run), CPU)[0]
    first, last = trained.layers(pictures, (0, trained.depth - 1))
    torch.testing.assert_close(last, trained.tokens(pictures).patches)
    assert first.shape == last.shape and not torch.allclose(first, last)


def test_raw_pixels_are_the_pixels(pictures):
    subject = pixel_subject(24, 6)
    tokens = subject.tokens(pictures)
    assert tokens.patches.shape == (3, 16, 6 * 6 * 3) and subject.side == 4
    image = pictures[1].double()
    image = (image - image.mean()) / (image.std() + 1e-6)
    expected = image[6:12, 18:24].flatten()  # second row of patches, fourth column
    torch.testing.assert_close(tokens.patches[1, 7].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(subject.mean(pictures), tokens.cls)


def test_features_of_a_study(run, images):
    trained, *_ = subjects_of(read_encoder(run), CPU)
    train, test = open_study_splits(str(images), num_train=30, num_test=12)
    assert not set(train.indices.tolist()) & set(test.indices.tolist())
    study = Study((trained,), train, test, CPU)
    mean, cls, both = (study.features(trained, test, kind) for kind in ("mean", "class", "both"))
    assert torch.equal(both.features, torch.cat([cls.features, mean.features], 1))
    assert torch.equal(mean.indices, test.indices)
    source = open_source(str(images))
    assert mean.labels.tolist() == [source.label(i) for i in test.indices.tolist()]


def test_files_that_are_no_encoder(run, tmp_path, capfd):
    export = tmp_path / "encoder.safetensors"
    assert main(["export", str(run), str(export)]) == 0
    text = tmp_path / "notes.txt"
    text.write_text("no tensors here")
    bare = tmp_path / "bare.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, bare)
    with safetensors.safe_open(export, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    narrow = tmp_path / "narrow.safetensors"
    tensors["norm.weight"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, narrow, metadata)
    for path, reason in ((text, "misplace export"), (bare, "misplace export"), (narrow, r"norm\.weight is \(3,\)")):
        with pytest.raises(UserError, match=reason):
            read_encoder(path)
    assert main(["evaluate", str(export)]) == 2
    assert "give --data" in capfd.readouterr().err


def test_evaluate_prints_every_baseline(run, images, capfd, tmp_path):
    arguments = ["--num-train", "30", "--num-test", "12", "--device", "cpu", "--out", str(tmp_path / "result.json")]
    assert main(["evaluate", str(run), "--protocol", "linear", "--linear.shots", "2", *arguments]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [(row["encoder"], row["measure"]) for row in result["rows"]] == [
        (encoder, measure) for encoder in ("trained", "random", "pixels") for measure in ("linear", "linear 2-shot")
    ]
    assert result["top1"] == result["rows"][0]["value"]
    assert all(row["low"] <= row["value"] <= row["high"] and row["chance"] == 0.5 for row in result["rows"])
    assert json.loads((tmp_path / "result.json").read_text()) == result


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--protocol", "linear", "--linear.feature", "best"], "--linear.feature best: one of mean, class, both"),
        (["--protocol", "linear", "--linear.epochs", "0"], "--linear.epochs 0"),
        (["--protocol", "linear", "--linear.learning-rates", "0"], "all above 0"),
        (["--protocol", "linear", "--linear.shots", "99"], "99 shots: only"),
        (["--protocol", "sorcery"], "sorcery"),
    ],
)
def test_bad_options(run, options, reason, capfd):
    capfd.readouterr()
    assert main(["evaluate", str(run), *options]) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and reason in told
