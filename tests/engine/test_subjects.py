"""Who is evaluated: the trained encoder from wherever it is saved, the one a run began with, raw pixels."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from misplace.engine import trainer
from misplace.engine.cli import main
from misplace.engine.commands import evaluate
from misplace.engine.data import open_source
from misplace.engine.encoder_file import read_encoder
from misplace.engine.errors import UserError
from misplace.engine.evaluation import Study, encoder_subject, open_study_splits, pixel_subject, subjects_of
from misplace.engine.export import write_timm
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method
from misplace.engine.models import VisionTransformer
from misplace.engine.resolve import resolve

CPU = torch.device("cpu")
MODEL = {"image_size": 24, "patch_size": 6, "channels": 3, "width": 64, "depth": 2, "mean": [0.5] * 3, "std": [0.5] * 3}
HOSTILE = {  # what replaces the metadata's own, and how the reason is told
    "zero patch": ({"patch_size": 0}, "'patch_size': 0"),
    "negative depth": ({"depth": -1}, "'depth': -1"),
    "deep": ({"depth": 2_000_000}, "a depth of 2000000 with 30 tensors"),
    "endless": ({"depth": float("inf")}, "'depth': inf"),
    "text": ({"depth": "2"}, "'depth': '2'"),
    "heads": ({"num_heads": 3}, "multiple"),
    "side": ({"img_size": 25}, "multiple"),
    "other model": ({"qkv_bias": False}, "'qkv_bias': False"),
    "channels": ({"in_chans": 1}, "not of 1 channels"),
}


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


def test_an_exported_file_is_evaluated_like_its_run(run, images, tmp_path, capfd):
    """Features to the bit: those of the run, kept under the digest of the encoder, are found for the file."""
    export = tmp_path / "encoder.safetensors"
    assert main(["export", str(run), str(export)]) == 0

    def rows(path, *more):
        arguments = ["--data", str(images), "--num-train", "30", "--num-test", "12", "--device", "cpu", *more]
        assert main(["evaluate", str(path), *arguments]) == 0
        result = json.loads(capfd.readouterr().out.splitlines()[-1])
        return [row for row in result["rows"] if row["encoder"] == "trained"]

    of_run = rows(run)
    kept = sorted(evaluate.default_cache().iterdir())
    assert rows(export) == of_run == rows(export, "--no-cache")
    added = set(evaluate.default_cache().iterdir()) - set(kept)
    assert len(kept) == 6 and len(added) == 2  # the random encoder of a file without a seed, both splits


def test_the_digest_knows_the_heads(pictures):
    """Equal weights in another number of heads are another encoder."""

    def subject(num_heads):
        torch.manual_seed(0)
        return encoder_subject("", VisionTransformer(**MODEL, num_heads=num_heads))

    one, four = subject(1), subject(4)
    assert one.digest != four.digest and one.digest == subject(1).digest
    assert not torch.equal(one.mean(pictures), four.mean(pictures))


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


@pytest.fixture
def exported_file(tmp_path) -> Path:
    model = MODEL | {"num_heads": 4}
    return write_timm(tmp_path / "good.safetensors", dict(VisionTransformer(**model).state_dict()), model)


@pytest.fixture
def exported(exported_file) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of an exported file."""
    with safetensors.safe_open(exported_file, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("arguments, reason", HOSTILE.values(), ids=list(HOSTILE))
def test_arguments_that_no_export_writes(exported, tmp_path, arguments, reason):
    metadata, tensors = exported
    metadata["timm_kwargs"] = json.dumps(json.loads(metadata["timm_kwargs"]) | arguments)
    safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(UserError, match=reason) as error:
        read_encoder(tmp_path / "bad.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("timm_kwargs", "[" * 100_000, "recursion"),
        ("timm_kwargs", "[]", "misplace export"),
        ("std", "[0, 1, 1]", "mean and std"),
        ("mean", "[NaN, 0, 0]", "mean and std"),
        ("mean", "0.5", "misplace export"),
        ("head.weight", torch.zeros(2), r"head\.weight has no place"),
        ("norm.bias", torch.zeros(64, dtype=torch.int8), r"norm\.bias is torch\.int8"),
    ],
)
def test_metadata_and_tensors_that_no_export_writes(exported, tmp_path, name, value, reason):
    metadata, tensors = exported
    (metadata if isinstance(value, str) else tensors)[name] = value
    safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(UserError, match=reason):
        read_encoder(tmp_path / "bad.safetensors")


def test_evaluate_prints_every_baseline(run, images, capfd, tmp_path):
    arguments = ["--num-train", "30", "--num-test", "12", "--device", "cpu", "--out", str(tmp_path / "result.json")]
    assert main(["evaluate", str(run), "--protocol", "linear", "--shots", "2", *arguments]) == 0
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
        (["--linear.feature", "best"], "--linear.feature best: one of mean, class, both"),
        (["--linear.epochs", "0"], "--linear.epochs 0"),
        (["--linear.learning-rates", "0"], "all above 0"),
        (["--linear.learning-rates", "nan"], "all above 0"),
        (["--shots", "1,99"], "99 shots: only"),
        (["--shots", "1,few"], "--shots 1,few: write numbers as in 1,5,10"),
        (["--shots", "1", "--protocol", "spatial"], "--shots: only linear and finetune have them, not spatial"),
    ],
)
def test_bad_options_of_a_protocol(exported_file, images, options, reason, capfd):
    assert main(["evaluate", str(exported_file), "--data", str(images), "--protocol", "linear", *options]) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and reason in told


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--protocol", "sorcery"], "sorcery"),
        (["--num-train", "0"], "--num-train 0: must be 1 or more"),
        (["--num-test", "-3"], "--num-test -3: must be 1 or more"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--out", "no/such/folder/x.json"], "in a folder that exists"),
        (["--out", "."], "give a file"),
    ],
)
def test_bad_options_are_told_before_anything_is_read(options, reason, capfd):
    assert main(["evaluate", "no such run", *options]) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and reason in told


@pytest.mark.parametrize("protocol", ["knn", "linear", "finetune", "parts", "spatial", "pose", "robustness"])
def test_a_run_without_checkpoints(run, tmp_path, protocol, capfd):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert main(["evaluate", str(tmp_path), "--protocol", protocol]) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and f"{tmp_path}: has no checkpoint yet" in told
