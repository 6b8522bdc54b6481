"""`misplace bench data`: sides never run at once, a slower one is told, and the peers make the views they say."""

import importlib.metadata
import itertools
import json
import math
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


TICK = 1 / 1024  # s


class Sides:
    """Fake loaders that move a clock of their own, and write down when each is open."""

    def __init__(self):
        self.now, self.entries, self.open = 0.0, [], set()

    def side(self, name, ticks=(1,), sizes=(4,), first=()):
        """Batches of `sizes` images in turn that take `ticks`, after those that take `first`."""

        @contextmanager
        def loader():
            assert not self.open, f"{name} opened while {self.open} is open"
            self.open.add(name)
            self.entries.append(name)

            def batches():
                for wait, size in zip(itertools.chain(first, itertools.cycle(ticks)), itertools.cycle(sizes)):
                    self.now += wait * TICK
                    yield size

            yield batches()
            self.open.remove(name)

        return loader


@pytest.fixture
def sides(monkeypatch):
    made = Sides()
    monkeypatch.setattr(segments.time, "perf_counter", lambda: made.now)
    return made


def test_sides_take_turns_alone_and_each_begins_a_round(sides):
    peers = {name: sides.side(name) for name in ("a", "b")}
    heard = []
    samples = segments.measure(
        sides.side("ours"), peers, rounds=4, seconds=8 * TICK, warm_up=1, after_round=heard.append
    )
    rounds = [sides.entries[i : i + 4] for i in range(0, 16, 4)]
    assert rounds[0] == ["ours", "a", "b", "ours"] and rounds[1] == ["a", "b", "ours", "ours"]
    assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "ours", "ours")}
    assert {name: len(values) for name, values in samples.items()} == {"ours": 4, "a": 4, "b": 4, "again": 4}
    assert [list(of_round) for of_round in heard] == [list(samples)] * 4


def test_a_slower_peer_is_told_and_warm_up_is_not_counted(sides):
    ours = sides.side("ours", first=(500, 500))  # batches that are not there yet
    samples = segments.measure(ours, {"slow": sides.side("slow", ticks=(8,))}, rounds=3, seconds=64 * TICK, warm_up=2)
    pace = segments.paces(samples)["slow"]
    assert (pace.ratio, pace.ours.p50, pace.against.p50) == (8, TICK / 4 * 1e3, 8 * TICK / 4 * 1e3)
    assert pace.itself == (1, 1, 1)


def test_a_segment_counts_images_not_batches(sides):
    assert segments.segment(sides.side("a", sizes=(7, 1)), seconds=64 * TICK, warm_up=0) == 64 * TICK / 256 * 1e3


def test_batches_of_workers_that_finish_together_are_counted_together(sides):
    """Two workers: nothing for nine ticks, then two batches at once. Half a group would look twice as slow or fast."""
    bursts = sides.side("a", ticks=(9, 1))
    for seconds in (5 * TICK, 9 * TICK, 55 * TICK):
        assert segments.segment(bursts, seconds=seconds, warm_up=1, together=2) == 10 * TICK / 8 * 1e3


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
