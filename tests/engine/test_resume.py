"""Exact resume: kills, SIGTERM and another number of workers change no bit of the final state."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from misplace.engine.checkpoint import latest, load
from misplace.engine.data import native_views
from misplace.engine.errors import UserError
from misplace.engine.recipes import RECIPES
from misplace.engine.trainer import pretrain

HERE = Path(__file__).parent
KILLS = 50


def state_of(folder):
    return load(latest(folder / "checkpoints"))


def equal_to_the_bit(a, b):
    assert a.step == b.step and a.tensors.keys() == b.tensors.keys()
    return [name for name in a.tensors if not torch.equal(a.tensors[name], b.tensors[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "pipeline, recipe, kills",
    [
        ("pillow", "moco_v3_dilemma", KILLS),
        ("dali", "moco_v3_dilemma", 10),
        *(("pillow", recipe, 5) for recipe in RECIPES if recipe != "moco_v3_dilemma"),
    ],
)
def test_kills_lose_nothing_and_change_no_bit(tmp_path, pipeline, recipe, kills):
    if pipeline == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    script = [sys.executable, str(HERE / "kill_runs.py"), str(tmp_path), str(kills), pipeline, recipe]
    done = subprocess.run(
        script, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["kills"] >= kills
    assert report["lost"] == 0 and report["differing_bits"] == 0
    if kills == KILLS:
        assert report["places"].keys() == {"before step", "after step", "file system call"}


def test_workers_change_no_bit(runs, images, tmp_path):
    folders = []
    for workers in (0, 2):
        config = runs.tiny_config("moco_v3_dilemma", images, tmp_path / f"workers-{workers}")
        data = config.data.__class__(**{**vars(config.data), "workers": workers})
        folders.append(pretrain(config.__class__(**{**vars(config), "data": data})))
    assert equal_to_the_bit(*map(state_of, folders))


@pytest.mark.parametrize("workers", [0, 3])
def test_dali_changes_no_bit(runs, images, tmp_path, workers):
    """Its files are PNGs, which Pillow decodes, and JPEGs, which DALI does; its views are Pillow's."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    if not native_views.available():
        pytest.skip("the extension is not built")
    for i, file in enumerate(sorted(images.rglob("*.png"))):
        if i % 3:
            Image.open(file).save(file.with_suffix(".jpg"), quality=95)
            file.unlink()
    folders = []
    for pipeline in ("pillow", "dali"):
        config = runs.tiny_config("moco_v3_dilemma", images, tmp_path / pipeline, pipeline=pipeline)
        data = dataclasses.replace(config.data, workers=workers if pipeline == "dali" else 0)
        folders.append(pretrain(dataclasses.replace(config, data=data)))
    assert equal_to_the_bit(*map(state_of, folders))


def test_sigterm_saves_and_exits_0(images, tmp_path):
    command = [
        *(sys.executable, "-m", "misplace.engine.cli", "pretrain", "moco_v3_dilemma", "--model", "nano"),
        *("--data", str(images), "--steps", "100000", "--out", str(tmp_path / "run"), "--run.log-every", "1"),
        *("--data.batch-size", "8", "--model.image-size", "24", "--model.patch-size", "6"),
        *("--framework.hidden-width", "64", "--device", "cpu"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()  # its output ends with it
            pytest.fail(process.communicate()[0])
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    step = state_of(tmp_path / "run").step
    assert step >= 3 and f"stopped at step {step}, saved" in output


def test_a_finished_run_resumes_to_itself(runs, images, tmp_path):
    folder = pretrain(runs.tiny_config("moco_v3_dilemma", images, tmp_path / "run"))
    before = state_of(folder)
    pretrain(runs.tiny_config("moco_v3_dilemma", images, folder, resume=True))
    assert equal_to_the_bit(before, state_of(folder))


def test_resuming_with_another_configuration_is_refused(runs, images, tmp_path):
    folder = pretrain(runs.tiny_config("moco_v3_dilemma", images, tmp_path / "run"))
    other = runs.tiny_config("moco_v3_dilemma", images, folder, resume=True, pretext={"wrong_rate": 0.3})
    with pytest.raises(UserError, match=r"pretext.wrong_rate \(0.2 and 0.3\)"):
        pretrain(other)


def test_damaged_checkpoints_are_refused(runs, images, tmp_path):
    folder = pretrain(runs.tiny_config("moco_v3_dilemma", images, tmp_path / "run"))
    tensors = latest(folder / "checkpoints") / "tensors.safetensors"
    whole = tensors.read_bytes()
    resume = runs.tiny_config("moco_v3_dilemma", images, folder, resume=True)
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    for damaged in (bytes(flipped), whole[:-100]):
        tensors.write_bytes(damaged)
        with pytest.raises(UserError, match=r"tensors\.safetensors"):
            pretrain(resume)
