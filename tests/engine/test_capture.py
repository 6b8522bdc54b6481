"""A capture holds what a non-finite step saw, to the bit."""

import errno
import importlib
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from misplace.engine.capture import read_capture, write_capture
from misplace.engine.checkpoint import CheckpointError


class Plan(NamedTuple):
    src: Tensor
    pos: Tensor
    wrong: Tensor


def plan(seed):
    src = (torch.arange(12, dtype=torch.int32).reshape(2, 6) + seed) % 36
    return Plan(src, src.flip(1), src != src.flip(1))


def capture(folder, **changes):
    given = {
        "batch_views": (
            torch.arange(96, dtype=torch.uint8).reshape(2, 4, 4, 3),
            torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        ),
        "index": torch.tensor([2**40, 3]),
        "epoch": 5,
        "plans": [plan(0), plan(7)._asdict()],
        "tensors": {
            "blocks.0.weight": torch.tensor([float("nan"), -0.0, float("inf")]),
            "index": torch.tensor(1),
        },
        "state": {"step": 120, "loss": float("nan"), "betas": (0.9, 0.95)},
        "reason": "the loss is nan at step 120",
    }
    return given | changes, write_capture(folder, **(given | changes))


def test_a_capture_comes_back(tmp_path):
    given, path = capture(tmp_path / "capture")
    assert path == tmp_path / "capture" / "capture-0000"
    read = read_capture(path)
    assert len(read.batch_views) == 2 and all(map(torch.equal, read.batch_views, given["batch_views"]))
    assert torch.equal(read.index, given["index"]) and read.index.dtype == torch.int64
    assert read.epoch == 5 and read.reason == given["reason"]
    for i, wanted in enumerate((plan(0), plan(7))):
        again = Plan(**read.plans[i])
        assert all(map(torch.equal, again, wanted)) and again.wrong.dtype == torch.bool
    assert set(read.tensors) == {"blocks.0.weight", "index"} and read.tensors["index"] == 1
    weight = read.tensors["blocks.0.weight"]
    assert torch.equal(weight.view(torch.int32), given["tensors"]["blocks.0.weight"].view(torch.int32))
    assert read.state == {"step": 120, "loss": None, "betas": [0.9, 0.95]}


def test_captures_are_numbered_and_never_overwritten(tmp_path):
    (tmp_path / "capture-0007").mkdir()
    (tmp_path / "capture-notes").mkdir()
    assert [capture(tmp_path)[1].name for _ in range(2)] == ["capture-0008", "capture-0009"]


def test_more_than_ten_views(tmp_path):
    views = [torch.full((1, 2, 2, 1), i, dtype=torch.uint8) for i in range(12)]
    _, path = capture(tmp_path, batch_views=views, plans=[])
    read = read_capture(path)
    assert [int(view[0, 0, 0, 0]) for view in read.batch_views] == list(range(12)) and read.plans == ()


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
def test_a_damaged_capture_is_refused(tmp_path, name):
    _, path = capture(tmp_path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name}.*cannot be replayed") as error:
        read_capture(path)
    assert "\n" not in str(error.value)


def test_no_capture_there(tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        read_capture(tmp_path / "capture-0000")


def test_a_failing_write_leaves_nothing_and_still_says_why_training_stopped(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    kill_points = importlib.import_module("kill_points")
    (tmp_path / "capture").mkdir()
    points = kill_points.count(lambda: capture(tmp_path / "other"))
    assert points > 8
    for k in range(2, points):  # the first makes the folder, the last syncs it after all is done
        undo = kill_points.install(k, errno.ENOSPC)
        try:
            with pytest.raises(CheckpointError, match=r"the loss is nan at step 120.*No space left") as error:
                capture(tmp_path / "capture")
        finally:
            undo()
        assert "\n" not in str(error.value)
    assert not [name for name in os.listdir(tmp_path / "capture") if name.startswith(".tmp")]
