"""`misplace bench data`: sides never run at once, a slower one is told, and the peers make the views they say."""

import importlib.metadata
import json
import math
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from misplace.bench.data import images, segments
from misplace.bench.data.command import main
from misplace.bench.peers import dali_data, torchvision_data
from misplace.engine.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(root / f"{i:02}.jpg")
    return root


class Log:
    """Fake loaders that write down when each is open; `slow` takes ten times as long."""

    def __init__(self):
        self.entries, self.open = [], set()

    def side(self, name, seconds=0.001):
        @contextmanager
        def loader():
            assert not self.open, f"{name} opened while {self.open} is open"
            self.open.add(name)
            self.entries.append(name)

            def batches():
                while True:
                    time.sleep(seconds)
                    yield 4

            yield batches()
            self.open.remove(name)

        return loader


def test_sides_take_turns_alone_and_each_begins_a_round():
    log = Log()
    samples = segments.measure(
        log.side("ours"), {"a": log.side("a"), "b": log.side("b")}, rounds=4, seconds=0.005, warm_up=1
    )
    rounds = [log.entries[i : i + 4] for i in range(0, 16, 4)]
    assert rounds[0] == ["ours", "a", "b", "ours"] and rounds[1] == ["a", "b", "ours", "ours"]
    assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "ours", "ours")}
    assert {name: len(values) for name, values in samples.items()} == {"ours": 4, "a": 4, "b": 4, "again": 4}


def test_a_slower_peer_is_told_and_warm_up_is_not_counted():
    def loader():
        yield from (0.05, 0.05)  # batches that are not there yet
        while True:
            yield 0.002

    @contextmanager
    def ours():
        yield (time.sleep(wait) or 4 for wait in loader())

    log = Log()
    samples = segments.measure(ours, {"slow": log.side("slow", 0.02)}, rounds=3, seconds=0.03, warm_up=2)
    pace = segments.paces(samples)["slow"]
    assert 4 < pace.ratio < 12 and pace.ours.p50 < 1.5 < pace.against.p50


def test_a_segment_counts_images_not_batches():
    @contextmanager
    def loader():
        yield (time.sleep(0.001) or size for size in (7, 1) * 10_000)

    assert segments.segment(loader, seconds=0.05, warm_up=0) == pytest.approx(1.1 / 4, rel=0.5)


@pytest.mark.parametrize("form, sizes", [("two-views", [224] * 2), ("multi-crop", [224] * 2 + [96] * 8)])
def test_torchvision_makes_normalised_views(folder, form, sizes):
    pictures = torchvision_data.Pictures(sorted(folder.rglob("*.jpg")), torchvision_data.views_of(form))
    views = pictures[13]
    assert [tuple(view.shape) for view in views] == [(3, size, size) for size in sizes]
    assert all(view.min() > -3 and view.max() < 3 for view in views)


@pytest.mark.parametrize("form", ["two-views", "multi-crop"])
def test_plain_dali_makes_batches(folder, form):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    with dali_data.loader(folder, form, 4, 2) as batches:
        assert [next(batches) for _ in range(3)] == [4, 4, 4]


@pytest.mark.parametrize("pipeline", ["dali", "pillow"])
def test_a_rehearsal_writes_its_rows(folder, tmp_path, pipeline, capsys):
    against = "torchvision"
    if pipeline == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        against += ",dali-plain"
    files = tmp_path / "rows.json", tmp_path / "rows.csv"
    options = ["--images", str(folder), "--pipeline", pipeline, "--against", against, "--tiny", "--workers", "1"]
    assert main([*options, "--json", str(files[0]), "--csv", str(files[1])]) == 0
    found = json.loads(files[0].read_text())
    assert [row["against"] for row in found] == against.split(",")
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 and row["impl"] == pipeline for row in found)
    assert files[1].read_text().count("\n") == 1 + len(found)
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, says",
    [
        (["--against", "ffcv"], "no peer 'ffcv'"),
        (["--workers", "0"], "--workers 0"),
        (["--rounds", "0"], "--rounds 0"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "no CUDA device")]),
        (["--images", "/nowhere"], "--images /nowhere"),
    ],
)
def test_what_cannot_be_asked_for(options, says):
    with pytest.raises(UserError, match=says):
        main([*options, "--tiny"])


def test_a_missing_package_is_one_line(folder, tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UserError, match="pip install --no-deps foolbox"):
        images.photographs(tmp_path / "photographs")
    monkeypatch.setattr(dali_data, "why_unavailable", lambda: "not installed: pip install x")
    with pytest.raises(UserError, match="dali-plain: not installed"), dali_data.loader(folder, "two-views", 4, 1):
        pass


def test_poses_have_the_size_of_imagenets_average(tmp_path):
    root = images.poses(tmp_path / "poses", 2)
    assert [Image.open(file).size for file in sorted(root.iterdir())] == [(500, 375)] * 2
