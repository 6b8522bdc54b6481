"""The command as a user meets it: help, one-line errors with exit code 2, and runs over damaged folders."""

import json
import os
import subprocess
import sys

import pytest
import torch

from misplace.engine import pretrain
from misplace.engine.checkpoint import latest
from misplace.engine.cli import main
from misplace.engine.errors import UserError

TINY = [
    *("--model", "nano", "--data.batch-size", "8", "--model.image-size", "24", "--model.patch-size", "6"),
    *("--framework.hidden-width", "64", "--framework.output-width", "32", "--steps", "2"),
    *("--data.workers", "0", "--device", "cpu", "--run.knn-every", "0", "--run.no-report"),
]
METRICS = {
    *("step", "epoch", "images", "seconds", "loss", "contrastive", "bce", "auroc"),
    *("lr", "grad_norm", "images_per_s", "data_wait"),
}


def tiny(recipe, source, out, *more):
    return main(["pretrain", recipe, *TINY, "--data", str(source), "--out", str(out), *more])


@pytest.mark.parametrize("command", ["", "pretrain", "evaluate", "export", "data", "doctor"])
def test_every_command_has_help(command, capsys):
    try:
        assert main([*command.split(), "--help"]) == 0
    except SystemExit as stop:
        assert stop.code in (0, None)
    assert "misplace" in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(images, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    out = tmp_path / "run"

    def pretrain(recipe="moco_v3_dilemma", source=images, out=out, *more):
        return refused("pretrain", recipe, "--data", source, "--out", out, "--device", "cpu", *more)

    small = ("--model", "nano", "--data.batch-size", "8")
    assert "gone" in pretrain("moco_v3", tmp_path / "gone")
    assert "empty" in pretrain("moco_v3", tmp_path / "empty")
    assert "notes" in pretrain("moco_v3", tmp_path / "notes")
    assert "smaller than a patch" in pretrain("moco_v3", images, out, *small, "--model.image-size", "8")
    assert "unknown recipe 'mocov3'" in pretrain("mocov3")
    assert "--optim.speed" in pretrain("moco_v3", images, out, "--optim.speed", "9")
    assert "drop-rate 1.0" in pretrain("moco_v3_dilemma", images, out, "--pretext.drop-rate", "1.0")
    assert "wrong-rate 1.5" in pretrain("moco_v3_dilemma", images, out, "--pretext.wrong-rate", "1.5")
    assert "do not fill a batch" in pretrain("moco_v3", images, out, "--model", "nano")
    assert "unknown command 'train'" in refused("train")
    assert "no CUDA device" in pretrain("moco_v3", images, out, "--device", "cuda") or torch.cuda.is_available()
    assert not out.exists()


def test_run_folders_and_checkpoints_are_guarded(images, tmp_path, refused):
    run = tmp_path / "run"
    assert tiny("moco_v3_dilemma", images, run) == 0
    assert "already holds a run" in refused("pretrain", "moco_v3_dilemma", *TINY, "--data", images, "--out", run)
    tensors = latest(run / "checkpoints") / "tensors.safetensors"
    whole = tensors.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 8
    for damaged in (bytes(flipped), whole[:1000]):
        tensors.write_bytes(damaged)
        assert "tensors.safetensors" in refused("evaluate", run)
        assert "tensors.safetensors" in refused("export", run, tmp_path / "x.safetensors")
    tensors.write_bytes(whole)
    assert "no config.json" in refused("evaluate", tmp_path)


def test_pretrain_evaluate_export(images, tmp_path, capfd, timm):
    run = tmp_path / "run"
    assert tiny("moco_v3_dilemma", images, run) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and rows[-1].keys() >= METRICS
    environment = json.loads((run / "environment.json").read_text())
    assert environment["implementations"]["token_plan"] in ("native", "reference")
    assert any((run / "tensorboard").iterdir())

    capfd.readouterr()
    assert main(["evaluate", str(run), "--num-train", "30", "--num-test", "12", "--device", "cpu"]) == 0
    result = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert result["protocol"] == "knn" and result["k"] == [10, 20] and all(0 <= t <= 1 for t in result["top1"])

    file = tmp_path / "encoder.safetensors"
    assert main(["export", str(run), str(file)]) == 0
    import safetensors
    from safetensors.torch import load_file

    from misplace.engine.encoder_file import read_encoder

    with safetensors.safe_open(file, "pt") as opened:
        arguments = json.loads(opened.metadata()["timm_kwargs"])
    model = timm.models.vision_transformer.VisionTransformer(**arguments).eval()
    model.load_state_dict(load_file(file), strict=True)
    saved = read_encoder(run)
    encoder = saved.build(torch.device("cpu"))
    photos = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    mean, std = torch.tensor(saved.model["mean"]), torch.tensor(saved.model["std"])
    features = model.forward_features(((photos / 255 - mean) / std).movedim(-1, 1))
    torch.testing.assert_close(torch.cat([t.reshape(2, -1, 192) for t in encoder.embed(photos)], 1), features)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistake_is_told_on_any_terminal(encoding):
    command = [sys.executable, "-m", "misplace.engine.cli", "pretrain", "moco_v3", "--data.batch", "9"]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    told = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120).stderr
    assert "--data.batch" in told and "did you mean --data.batch-size?" in told and told.count("\n") == 1


@pytest.fixture
def one_percent_bad(images, bad_files):
    """300 images of which three cannot be read: truncated, empty, and text."""
    good = [p.read_bytes() for p in sorted(images.rglob("*.png"))]
    for i in range(297 - len(good)):
        (images / "rows" / f"more-{i:03}.png").write_bytes(good[i % len(good)])
    for name in ("truncated.jpg", "empty.jpg", "text.jpg"):
        (images / "rows" / name).write_bytes(bad_files[name][0])
    return images


def test_one_percent_of_bad_files_is_named_and_trained_around(one_percent_bad, tmp_path):
    run = tmp_path / "run"
    assert tiny("moco_v3_dilemma", one_percent_bad, run, "--steps", "40", "--data.max-bad-share", "0.02") == 0
    named = [json.loads(line)["path"].rpartition("/")[2] for line in (run / "quarantine.jsonl").open()]
    assert sorted(named) == ["empty.jpg", "text.jpg", "truncated.jpg"]


def test_more_bad_files_than_the_threshold_stop_the_run(one_percent_bad, tmp_path, capfd):
    assert tiny("moco_v3_dilemma", one_percent_bad, tmp_path / "run", "--steps", "40") == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "max-bad-share" in lines[0]


@pytest.fixture
def forty_bad(make_image, bad_files, tmp_path):
    """2,000 files, 40 of which cannot be used: five of each of eight kinds, in two classes."""
    root = tmp_path / "images"
    for name in ("good", "bad"):
        (root / name).mkdir(parents=True)
    good = [make_image(i, (24, 24)) for i in range(20)]
    for i in range(1960):
        (root / "good" / f"{i:04}.jpg").write_bytes(good[i % 20])
    assert len(bad_files) == 8
    for name, (data, _) in bad_files.items():
        for i in range(5):
            (root / "bad" / f"{i}-{name}").write_bytes(data)
    return root


@pytest.mark.parametrize("pipeline", ["dali", "pillow"])
def test_forty_bad_files_of_eight_kinds(forty_bad, bad_files, tmp_path, pipeline, refused):
    """All are named in one epoch and verified ahead, none is fatal below the threshold, one line above it."""
    if pipeline == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    options = ["--data.pipeline", pipeline, "--data.batch-size", "250", "--steps", "8"]
    assert tiny("moco_v3", forty_bad, tmp_path / "run", *options, "--data.max-bad-share", "0.02") == 0
    named = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").open()]
    assert sorted(line["path"].rpartition("/")[2] for line in named) == sorted(
        f"{i}-{name}" for name in bad_files for i in range(5)
    )
    assert all(line["reason"].startswith(bad_files[line["path"].rpartition("-")[2]][1]) for line in named)
    line = refused(
        "pretrain", "moco_v3", *TINY, *options, "--data", forty_bad, "--out", tmp_path / "other",
        "--data.max-bad-share", "0.01",
    )  # fmt: skip
    assert "of 2000 images cannot be read" in line and "max-bad-share" in line


def test_data_verify_names_bad_files(one_percent_bad, capfd):
    assert main(["data", "verify", str(one_percent_bad)]) == 1
    out = capfd.readouterr().out
    assert "300 images, 3 bad" in out and "empty.jpg: the file is empty" in out


def test_data_render_is_a_source(tmp_path, capfd, refused):
    root = tmp_path / "poses"
    assert main(["data", "render", str(root), "--train", "24", "--test", "12", "--workers", "1"]) == 0
    assert main(["data", "verify", f"poses:{root}"]) == 0
    assert "36 images, 0 bad" in capfd.readouterr().out
    assert "needs a folder of its own" in refused("data", "render", "--train", "5")


def test_the_python_function_is_the_command(images, tmp_path):
    options = {"data.batch-size": 8, "data.workers": 0, "model.image-size": 24, "model.patch-size": 6}
    options |= {"framework.hidden-width": 64, "run.no-report": True, "run.knn-every": 0, "device": "cpu"}
    run = pretrain("moco_v3", model="nano", data=images, steps=1, out=tmp_path / "run", **options)
    assert run == tmp_path / "run" and latest(run / "checkpoints").name == "step-00000001"
    with pytest.raises(UserError, match="--colour"):
        pretrain("moco_v3", colour="red")
