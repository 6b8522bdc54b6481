"""Tar shards: the same batches as the images they were made of; the index; what the webdataset package writes."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from misplace.engine.cli import main
from misplace.engine.data import AugmentConfig, make_loader, open_source, verify
from misplace.engine.data.poses import render_dataset
from misplace.engine.data.shards import Shards, find_shards
from misplace.engine.data.shards.index import build, index_of, index_path
from misplace.engine.data.shards.writer import write_shards
from misplace.engine.errors import UserError

SETTINGS = {"batch_size": 8, "num_views": 2, "image_size": 16, "augment": AugmentConfig(), "seed": 3}

WEBDATASET = """
import sys, webdataset
with webdataset.ShardWriter(sys.argv[1] + "/%04d.tar", maxcount=5, verbose=0) as sink:
    for i in range(12):
        data = open(f"{sys.argv[2]}/{i:02}.jpg", "rb").read()
        sink.write({"__key__": f"a/sample{i}", "jpg": data, "cls": i % 3, "json": {"n": i}})
"""


@pytest.fixture
def shards(photo_folder, tmp_path):
    """Some small shards of photo_folder."""
    return write_shards(str(photo_folder), tmp_path / "shards", shard_bytes=9000)


def batches(source, count=5, pipeline="pillow"):
    with make_loader(source, **SETTINGS, pipeline=pipeline) as loader:
        return [next(loader) for _ in range(count)]


def same_views(a, b):
    return all(torch.equal(x, y) for left, right in zip(a, b) for x, y in zip(left.views, right.views))


@pytest.mark.parametrize("pipeline", ["pillow", "dali"])
def test_folder_and_shards_give_the_same_batches(photo_folder, shards, pipeline):
    if pipeline == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    folder, packed = open_source(str(photo_folder)), open_source(str(shards))
    assert len(list(shards.glob("*.tar"))) > 2 and len(packed) == len(folder) == 24
    assert packed.class_names == folder.class_names == ("cat", "dog")
    assert [packed.label(i) for i in range(24)] == [folder.label(i) for i in range(24)]
    assert [packed.read(i) for i in range(24)] == [folder.read(i) for i in range(24)]
    assert (packed.mean, packed.std, packed.image_size) == (folder.mean, folder.std, folder.image_size)
    assert same_views(batches(folder, pipeline=pipeline), batches(packed, pipeline=pipeline))


def test_poses_their_folder_and_their_shards_give_the_same_batches(tmp_path):
    root = render_dataset(tmp_path / "poses", train=24, test=12, size=64, workers=1)
    write_shards(f"poses:{root}", tmp_path / "shards", shard_bytes=20_000)
    for split, count in (("train", 24), ("test", 12)):
        poses = open_source(f"poses:{root}", split=split)
        packed = open_source(str(tmp_path / "shards"), split=split)
        assert len(packed) == count and packed.class_names == poses.class_names
        assert [packed.label(i) for i in range(count)] == [poses.label(i) for i in range(count)]
        assert (packed.image_size, packed.patch_size, packed.mean) == (poses.image_size, poses.patch_size, poses.mean)
        assert same_views(batches(poses, 1), batches(packed, 1))
    folder = open_source(str(root))  # the same files in the order of the classes' names
    assert {folder.read(i) for i in range(24)} == {packed_bytes for packed_bytes in map(poses_bytes(root), range(24))}


def poses_bytes(root):
    return open_source(f"poses:{root}").read


def test_annotations_go_along(tmp_path):
    root = render_dataset(tmp_path / "poses", train=12, test=0, size=64, workers=1)
    out = write_shards(f"poses:{root}", tmp_path / "shards")
    poses = open_source(f"poses:{root}")
    with tarfile.open(next((out / "train").glob("*.tar"))) as tar:
        about = json.load(tar.extractfile("000000003.json"))
    assert about["part_centres"] == [list(centre) for centre in poses.annotation(3).part_centres]


def test_pixels_in_memory_become_pngs(tmp_path, monkeypatch):
    from misplace.engine.data.shards import writer

    class Gray:
        channels, image_size, patch_size, mean, std = 1, 8, 4, (0.5,), (0.25,)
        class_names, name = ("a", "b"), "gray"
        pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
        __len__ = lambda self: 16
        read = lambda self, i: self.pixels[i]
        label = lambda self, i: i % 2
        path_of = lambda self, i: f"gray[{i}]"

    monkeypatch.setattr(writer, "open_splits", lambda spec: (Gray(),))
    packed = open_source(str(write_shards("gray", tmp_path / "shards")))
    assert (packed.channels, packed.image_size, packed.mean) == (1, 8, (0.5,))
    assert all(
        np.array_equal(np.asarray(Image.open(io.BytesIO(packed.read(i)))), Gray.pixels[i, :, :, 0]) for i in range(16)
    )
    assert same_views(batches(Gray()), batches(packed))


def test_the_same_source_gives_the_same_bytes(photo_folder, shards, tmp_path):
    again = write_shards(str(photo_folder), tmp_path / "again", shard_bytes=9000)
    for shard in shards.glob("*.tar"):
        assert shard.read_bytes() == (again / shard.name).read_bytes()


def test_the_index_is_used_and_made_anew_when_it_does_not_fit(shards, monkeypatch):
    from misplace.engine.data.shards import index

    shard = sorted(shards.glob("*.tar"))[0]
    expected, builds = build(shard), []
    monkeypatch.setattr(index, "build", lambda path: (builds.append(path), build(path))[1])

    def same(found):
        return all(np.array_equal(a, b) for a, b in zip(expected[:4], found[:4])) and found.keys == expected.keys

    assert same(index_of(shard)) and not builds
    whole = index_path(shard).read_bytes()
    damaged = bytearray(whole)
    damaged[-3] ^= 1
    for content in (bytes(damaged), whole[:-5], whole + b"x", b"", b"{}\n", b"[" * 3000, b"\xff" * 9000):
        index_path(shard).write_bytes(content)
        assert same(index_of(shard)) and builds.pop() and not builds
        assert index_path(shard).read_bytes() == whole
    os.utime(shard, ns=(0, 0))
    assert index_of(shard).stamp[1] == 0 and builds.pop()
    index_path(shard).unlink()
    assert index_of(shard).stamp[1] == 0 and builds.pop()


def test_an_index_that_points_elsewhere_is_not_believed(shards):
    """Its digest is right: whoever wrote it meant it."""
    from misplace.engine.data.shards.index import _encode

    shard = sorted(shards.glob("*.tar"))[0]
    good = build(shard)
    for change in (
        {"offset": good.offset + shard.stat().st_size}, {"size": -good.size}, {"label": good.label - 9},
        {"key_end": good.key_end[::-1].copy()}, {"size": good.size + (1 << 40)},
    ):  # fmt: skip
        index_path(shard).write_bytes(_encode(good._replace(**change)))
        assert np.array_equal(index_of(shard).offset, good.offset)


def test_a_folder_that_cannot_be_written_is_read_all_the_same(shards, monkeypatch):
    from misplace.engine.data.shards import index

    for file in shards.glob("*.index"):
        file.unlink()
    monkeypatch.setattr(index, "replace_file", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
    assert len(open_source(str(shards))) == 24 and not list(shards.glob("*.index"))


def test_a_shard_that_changes_under_way_is_an_error_not_other_bytes(shards):
    source = open_source(str(shards))
    first = sorted(shards.glob("*.tar"))[0]
    data = first.read_bytes()
    first.write_bytes(data[:700])
    with pytest.raises(OSError, match="changed after it was indexed"):
        source.read(0)
    first.unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0)
    assert source.read(23)


def test_what_the_webdataset_package_writes(photo_folder, tmp_path, make_image):
    pytest.importorskip("webdataset", reason="the webdataset package is not installed")
    for i in range(12):
        (tmp_path / f"{i:02}.jpg").write_bytes(make_image(i))
    out = tmp_path / "written"
    out.mkdir()
    command = [sys.executable, "-c", WEBDATASET, str(out), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    source = open_source(str(out))
    assert len(source) == 12 and len(list(out.glob("*.tar"))) == 3
    assert [source.read(i) for i in range(12)] == [make_image(i) for i in range(12)]
    assert [source.label(i) for i in range(12)] == [i % 3 for i in range(12)]
    assert source.class_names == ("0", "1", "2") and source.path_of(7).endswith("0001.tar:a/sample7.jpg")


def test_forked_workers_read_too(shards):
    with make_loader(open_source(str(shards)), **SETTINGS, workers=2) as loader:
        ours = [next(loader) for _ in range(5)]
    assert same_views(ours, batches(open_source(str(shards))))


def test_names_of_shards(shards, tmp_path):
    paths = sorted(shards.glob("*.tar"))
    assert find_shards(str(shards)) == paths
    assert find_shards(f"{shards}/{{0000..0001}}.tar") == paths[:2]
    assert find_shards(str(paths[1])) == [paths[1]]
    assert find_shards(str(tmp_path / "absent")) is None
    for spec, says in (
        (f"{shards}/{{0000..9999}}.tar", "does not exist, and"),
        (f"{shards}/{{0003..0001}}.tar", "not a range"),
        (f"{shards}/{{0..99999999999}}.tar", "not a range"),
        (f"{shards}/absent.tar", "does not exist"),
    ):
        with pytest.raises(UserError, match=says):
            find_shards(spec)


def test_dataset_json_that_is_not_ours(shards):
    for content in (b"[]", b"{", b'{"channels": 7}', b'{"mean": [1]}', b'{"class_names": [1]}', b'{"image_size": "a"}'):
        (shards / "dataset.json").write_bytes(content)
        with pytest.raises(UserError, match=r"dataset\.json"):
            open_source(str(shards))
    (shards / "dataset.json").unlink()
    assert open_source(str(shards)).class_names == ("0", "1")


def test_the_command_writes_and_verify_reads(photo_folder, tmp_path, capfd):
    out = tmp_path / "packed"
    assert main(["data", "shard", str(photo_folder), str(out), "--shard-mb", "1"]) == 0
    assert main(["data", "verify", str(out)]) == 0
    assert "24 images, 0 bad" in capfd.readouterr().out
    assert main(["data", "shard", str(photo_folder), str(out)]) == 2
    error = capfd.readouterr().err
    assert "exists already" in error and error.count("\n") == 1


def test_what_cannot_be_written_leaves_nothing(photo_folder, tmp_path):
    def interrupt(done, _):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(str(photo_folder), tmp_path / "out", progress=interrupt)
    (photo_folder / "cat" / "00.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match="not a JPEG, PNG"):
        write_shards(str(photo_folder), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_bad_images_in_shards_are_named_by_shard_and_member(corrupt_folder, bad_files, tmp_path):
    out = tmp_path / "bad.tar"
    with tarfile.open(out, "w") as tar:
        for name, (data, _) in bad_files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    # two pairs share a key, as files of a folder do not
    with pytest.raises(UserError, match=r"has 2 images|comes twice"):
        verify(str(out))


def test_an_index_of_a_million_samples_is_arrays(tmp_path):
    from misplace.engine.data.shards.index import ShardIndex

    count = 1_000_000
    keys = b"".join(b"%09d.jpg" % i for i in range(count))
    column = np.arange(count, dtype="<i8")
    index = ShardIndex(column, column, column.astype("<i4"), (column + 1) * 13, keys, (0, 0))
    taken = sum(part.nbytes for part in index[:4]) + len(keys)
    assert taken == 41 * count and index.key(999_999) == "000999999.jpg"


def test_shards_of_one_class_or_none_have_no_labels(tmp_path, make_image):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(make_image(i))
    source = open_source(str(write_shards(str(tmp_path), tmp_path / "out")))
    assert source.class_names == () and source.label(0) == -1


def test_a_source_of_missing_and_given_labels_is_refused(tmp_path, make_image):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (("a.jpg", make_image(0)), ("a.cls", b"1"), ("b.jpg", make_image(1))):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    with pytest.raises(UserError, match="1 of 2 samples have no label"):
        Shards([tmp_path / "x.tar"])
