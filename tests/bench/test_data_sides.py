"""`misplace bench data` is even: the same views and files on every side, whole rounds of workers, nothing left over."""

import json
import multiprocessing
import os
import tarfile
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from PIL import Image

from misplace.bench.data import command, images, segments
from misplace.bench.data.cores import pinned_cores
from misplace.bench.data.forms import kinds
from misplace.bench.peers import dali_data, torchvision_data
from misplace.engine.errors import UserError

# METHODS: size, crop, blur, solarisation of each view
MOCO_V3 = [(224, (0.08, 1.0), 1.0, 0.0), (224, (0.08, 1.0), 0.1, 0.2)]
DINO = [(224, (0.25, 1.0), 1.0, 0.0), (224, (0.25, 1.0), 0.1, 0.2), *[(96, (0.05, 0.4), 0.5, 0.0)] * 8]
FORMS = {"two-views": MOCO_V3, "multi-crop": DINO}


def write(root, names, size=(80, 60)):
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(pixels).save(root / name, "jpeg")
    return root


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "images", [f"{i}.JPEG" for i in range(8)])


@pytest.mark.parametrize("form", FORMS)
def test_ours_and_torchvision_make_the_views_of_the_papers(form):
    assert [tuple(kind) for kind in kinds(form)] == FORMS[form]
    for transform, (size, scale, blur_p, solarize_p) in zip(torchvision_data.views_of(form), FORMS[form], strict=True):
        crop, jitter, gray, blur, solarize, flip, _, normalize = transform.transforms
        assert crop.size == (size, size) and crop.scale == scale and crop.ratio == (3 / 4, 4 / 3)
        assert crop.interpolation.value == "bicubic"
        (colours,) = jitter.transforms
        assert jitter.p == 0.8 and gray.p == 0.2 and flip.p == 0.5
        assert colours.brightness == colours.contrast == (0.6, 1.4)
        assert colours.saturation == (0.8, 1.2) and colours.hue == (-0.1, 0.1)
        assert (blur.p, solarize.p) == (blur_p, solarize_p)
        assert normalize.mean == (0.485, 0.456, 0.406) and normalize.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("cubic", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_plain_dali_makes_normalised_views(folder, form, cubic):
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    options = {"num_threads": 1, "device_id": None, "enable_conditionals": True}
    pipeline = dali.pipeline_def(dali_data._views, batch_size=3, **options)(images.files_of(folder), kinds(form), cubic)
    pipeline.build()
    views = [view.as_array() for view in pipeline.run()]
    assert [view.shape for view in views] == [(3, 3, size, size) for size, *_ in FORMS[form]]
    assert all(view.dtype == np.float32 and -3 < view.min() < view.max() < 3 for view in views)


def test_batches_that_come_together_are_counted_together(clock, monkeypatch):
    """Two workers, each with a batch of 10 every second: 20 images a second, wherever the segment would have ended."""
    monkeypatch.setattr(segments, "time", clock)

    @contextmanager
    def pairs():
        def batches():
            while True:
                clock.now += 1.0
                yield 10
                yield 10

        yield batches()

    paces = [segments.segment(pairs, seconds=s, warm_up=3, together=2) for s in (0.5, 1.0, 1.5, 3.5, 7.0)]
    assert paces == pytest.approx([50.0] * 5)
    assert segments.segment(pairs, seconds=0.5, warm_up=2) == pytest.approx(100.0)  # what is avoided


@pytest.mark.parametrize("name", ["ours", *command.PEERS])
def test_nothing_of_a_side_is_left_running(folder, name):
    if "dali" in name:
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    options = command.Options(batch_size=4)
    side = (
        command._ours(folder, options)
        if name == "ours"
        else partial(command.PEERS[name].loader, folder, "two-views", 4, 2)
    )
    threads = lambda: len(os.listdir("/proc/self/task"))
    for _ in range(3):  # libraries keep threads of their own from the first time on
        before = threads()
        with side() as batches:
            assert [next(batches) for _ in range(3)] == [4, 4, 4]
        assert not multiprocessing.active_children()
    deadline = time.monotonic() + 20  # a thread that was waited for is listed a moment longer
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threads() <= before


def test_every_image_is_read_whatever_its_extension(tmp_path):
    root = write(tmp_path / "mixed", ["b.JPEG", "a.jpg", "c.jpeg"])
    assert images.files_of(root) == [str(root / name) for name in ("a.jpg", "b.JPEG", "c.jpeg")]


def test_peers_read_no_shards(tmp_path):
    root = write(tmp_path / "one", ["a.jpg"])
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        tar.add(root / "a.jpg", "a.jpg")
    with pytest.raises(UserError, match="no image folder"):
        images.files_of(tmp_path / "shards")


def test_cores_are_given_back():
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), pinned_cores(1) as count:
        assert count == 1 == len(os.sched_getaffinity(0)) and os.sched_getaffinity(0) <= before
        raise KeyError
    assert os.sched_getaffinity(0) == before
    with pinned_cores(10_000) as count:
        assert count == len(before) and os.sched_getaffinity(0) == before


def test_a_missing_peer_is_told_before_anything_is_rendered(monkeypatch):
    monkeypatch.setattr(images, "make", lambda *_, **__: pytest.fail("images were made"))
    monkeypatch.setattr(dali_data, "why_unavailable", lambda: "not installed: pip install x")
    with pytest.raises(UserError, match="the peer dali-plain: not installed: pip install x"):
        command.main(["--against", "torchvision,dali-plain"])


def test_rendered_pictures_are_kept_complete_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("MISPLACE_DATA", str(tmp_path))
    monkeypatch.setattr(images, "POSES", 2)
    render = images.render_image

    def interrupted(i, size):
        if i == 1:
            raise KeyboardInterrupt
        return render(i, size=size)

    monkeypatch.setattr(images, "render_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.kept_poses()
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(images, "render_image", render)
    root = images.make("poses", tmp_path / "unused")
    assert sorted(os.listdir(root)) == ["0000.jpg", "0001.jpg"] and os.listdir(tmp_path) == [root.name]
    monkeypatch.setattr(images, "render_image", lambda *_: pytest.fail("rendered again"))
    assert images.make("poses", tmp_path / "unused") == root


def test_a_row_says_what_was_read_and_by_which_versions(folder, tmp_path, capsys):
    file = tmp_path / "rows.json"
    against = "torchvision,torchvision-bilinear"
    options = ["--pipeline", "pillow", "--form", "multi-crop", "--workers", "1", "--tiny"]
    assert command.main(["--images", str(folder), "--against", against, *options, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert {row["shape"] for row in rows} == {f"{folder} B=4"}
    assert all("pillow=" in row["versions"] and "torchvision=" in row["versions"] for row in rows)
    out = capsys.readouterr().out
    assert "1 cores" in out and "ours " in out and "again " in out
