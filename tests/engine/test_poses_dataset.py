"""`poses` on disk: the same bytes for any number of workers, complete or absent, and read back as it was drawn."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from misplace.engine.data import open_source
from misplace.engine.data.poses import (
    CLASS_NAMES,
    HIERARCHY,
    VERSION,
    PosesSource,
    render_dataset,
    render_image,
    source,
)
from misplace.engine.errors import UserError


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The same small set, rendered by one process and by two."""
    folder = tmp_path_factory.mktemp("poses")
    one = render_dataset(folder / "one", train=130, test=24, seed=3, workers=1)
    two = render_dataset(folder / "two", train=130, test=24, seed=3, workers=2)
    return one, two


def test_parallel_equals_serial(rendered):
    one, two = rendered
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert len(files) == 2 * 154 + 3
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_set_is_a_valid_image_folder(rendered):
    images = open_source(str(rendered[0]), split="test")
    assert len(images) == 24
    assert images.class_names == tuple(sorted(CLASS_NAMES))
    for i in range(len(images)):
        picture = Image.open(io.BytesIO(images.read(i)))
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (112, 112))


def test_source_reads_what_was_rendered(rendered):
    poses = PosesSource(rendered[0], "test")
    assert (len(poses), poses.channels, poses.image_size % poses.patch_size) == (24, 3, 0)
    for i in range(len(poses)):
        picture = render_image(i, seed=3, split="test", size=112)
        annotation = poses.annotation(i)
        assert poses.label(i) == annotation.class_id == picture.class_id
        assert annotation.hierarchy == tuple(lv.class_names[lv.of_pose[poses.label(i)]] for lv in HIERARCHY)
        assert annotation.part_centres == tuple(map(tuple, picture.part_centres))
        assert np.array_equal(poses.mask(i), picture.mask)
        stored = np.asarray(Image.open(io.BytesIO(poses.read(i))), dtype=np.float64)
        assert np.abs(stored - picture.image).mean() < 6
        assert poses.path_of(i).endswith(f"test/{CLASS_NAMES[poses.label(i)]}/{i:06d}.jpg")


def test_manifest_says_what_is_there(rendered):
    manifest = json.loads((rendered[0] / "poses.json").read_text())
    assert (manifest["version"], manifest["seed"], manifest["size"]) == (VERSION, 3, 112)
    assert manifest["counts"] == {"train": 130, "test": 24}
    assert tuple(manifest["class_names"]) == CLASS_NAMES


def test_rendered_set_is_left_alone_and_never_overwritten(rendered, tmp_path):
    calls = []
    options = {"seed": 3, "progress": lambda *done: calls.append(done)}
    render_dataset(rendered[0], train=130, test=24, **options)
    assert calls == []
    with pytest.raises(UserError, match="holds something else"):
        render_dataset(rendered[0], train=131, test=24, **options)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        render_dataset(tmp_path, train=12, test=0)


def test_interrupted_rendering_leaves_nothing(tmp_path):
    def interrupt(done, total):
        assert (done, total) == (12, 24)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_dataset(tmp_path / "poses", train=12, test=12, size=64, workers=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad", [{"train": -1}, {"train": 0, "test": 0}, {"size": 8}, {"seed": -1}, {"workers": 0}], ids=str
)
def test_bad_settings_are_the_users_to_mend(bad, tmp_path):
    with pytest.raises(UserError, match="poses: "):
        render_dataset(tmp_path / "poses", **({"train": 12, "test": 0} | bad))
    assert list(tmp_path.iterdir()) == []


def test_missing_set_and_split_are_named(tmp_path):
    with pytest.raises(UserError, match="no poses v"):
        PosesSource(tmp_path)
    with pytest.raises(UserError, match="no split 'valid'"):
        PosesSource(tmp_path, "valid")


def test_default_set_is_rendered_on_first_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MISPLACE_DATA", str(tmp_path))
    monkeypatch.setattr(source, "TRAIN", 24)
    monkeypatch.setattr(source, "TEST", 12)
    assert len(PosesSource(split="train")) == 24
    message = capsys.readouterr().err
    assert message.startswith("rendering poses: 36 pictures of 112 px into ") and message.count("\n") == 1
    assert len(PosesSource(split="test")) == 12
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == [f"poses-v{VERSION}-seed0-112px-24+12"]
