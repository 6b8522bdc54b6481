"""Tar shards: what is written is what is read, with the same batches to the bit as the source it was written from."""

import gc
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from misplace.engine.cli import main
from misplace.engine.data import AugmentConfig, load_eval, make_loader, open_evaluation, open_source, verify
from misplace.engine.data.dali import why_unavailable
from misplace.engine.data.fashion_mnist import FashionMNIST
from misplace.engine.data.poses import render_dataset
from misplace.engine.data.shards import index_file, reader, write_shards
from misplace.engine.data.shards.index import build_index
from misplace.engine.data.shards.tar import Member
from misplace.engine.data.sources import open_splits
from misplace.engine.errors import UserError

SETTINGS = {"batch_size": 8, "num_views": 2, "image_size": 16, "augment": AugmentConfig(), "seed": 11}


def batches(source, count=4, **settings):
    with make_loader(source, **{**SETTINGS, **settings}) as made:
        return [next(made) for _ in range(count)]


def same_pixels(first, second) -> bool:
    """Views and order; the failures of a bad image have another path."""
    return all(torch.equal(a.index, b.index) and all(map(torch.equal, a.views, b.views)) for a, b in zip(first, second))


def write_tar(file: Path, members: dict[str, bytes], **options) -> Path:
    with tarfile.open(file, "w", **{"format": tarfile.USTAR_FORMAT, **options}) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


@pytest.fixture(scope="module")
def poses(tmp_path_factory) -> Path:
    return render_dataset(tmp_path_factory.mktemp("set") / "poses", train=24, test=12, size=32, workers=1)


@pytest.fixture
def shards(photo_folder, tmp_path) -> Path:
    """photo_folder in several shards."""
    out = write_shards([open_source(str(photo_folder))], tmp_path / "shards", shard_bytes=12_000)
    assert len(list(out.glob("*.tar"))) > 3
    return out


@pytest.mark.parametrize("pipeline", ["pillow", "dali"])
def test_poses_folder_and_shards_give_the_same_batches(poses, tmp_path, pipeline):
    if pipeline == "dali" and why_unavailable():
        pytest.skip(why_unavailable())
    train, test = open_splits(f"poses:{poses}")
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(len(train)):
        (flat / f"{i:03}.jpg").write_bytes(train.read(i))
    folder = open_source(str(flat))
    of_poses = write_shards([train, test], tmp_path / "of_poses", shard_bytes=9_000)
    of_folder = write_shards([folder], tmp_path / "of_folder", shard_bytes=20_000)
    expected = batches(train, pipeline=pipeline)
    for source in (folder, open_source(str(of_poses)), open_source(str(of_folder))):
        assert same_pixels(batches(source, pipeline=pipeline), expected)


def test_everything_of_a_source_comes_back(poses, tmp_path):
    written = write_shards(open_splits(f"poses:{poses}"), tmp_path / "out", shard_bytes=9_000)
    for split, folder in (("train", "train"), ("test", "test")):
        source, read = open_source(f"poses:{poses}", split=split), open_source(str(written), split=split)
        assert [read.read(i) for i in range(len(read))] == [source.read(i) for i in range(len(source))]
        assert [read.label(i) for i in range(len(read))] == [source.label(i) for i in range(len(source))]
        for name in ("class_names", "image_size", "patch_size", "channels", "mean", "std"):
            assert getattr(read, name) == getattr(source, name)
        metadata, annotation = read.metadata(5), source.annotation(5)
        assert metadata["file"] == annotation.file and metadata["class_name"] == annotation.hierarchy[-1]
        assert metadata["annotation"]["part_centres"] == [list(centre) for centre in annotation.part_centres]
        assert read.path_of(0) == f"{written}/{folder}/0000.tar:00000000.jpg"
    result = verify(str(written), workers=2)
    assert (result.num_images, result.failures) == (36, ())
    train, test = open_evaluation(str(written))
    images, kept = load_eval(test, torch.arange(12), 24)
    assert len(train) == 24 and images.shape == (12, 24, 24, 3) and len(kept) == 12


def test_damaged_images_keep_their_place(corrupt_folder, bad_files, tmp_path):
    folder = open_source(str(corrupt_folder))
    written = write_shards([folder], tmp_path / "out", shard_bytes=12_000)
    source = open_source(str(written))
    expected, got = batches(folder), batches(source)
    assert same_pixels(got, expected)
    assert [f.reason for b in got for f in b.failures] == [f.reason for b in expected for f in b.failures] != []
    assert {source.metadata(i)["file"] for i in range(len(bad_files))} == {f"bad/{name}" for name in bad_files}
    assert sum(verify(str(written)).kinds.values()) == len(bad_files)


def test_raw_pixels_become_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    source = FashionMNIST.__new__(FashionMNIST)
    source.name, source._path, source._images, source._labels = "f", "/x/images.gz", pixels, np.arange(12) % 10
    read = open_source(str(write_shards([source], tmp_path / "out")))
    assert (read.channels, read.patch_size, read.class_names) == (1, 4, source.class_names)
    assert read.path_of(3).endswith("0000.tar:00000003.png") and read.metadata(3)["file"] == "images.gz[3]"
    assert same_pixels(batches(read), batches(source))


def test_the_same_source_gives_the_same_bytes(photo_folder, tmp_path):
    made = [write_shards([open_source(str(photo_folder))], tmp_path / name, shard_bytes=12_000) for name in "ab"]
    for name in sorted(path.name for path in made[0].iterdir() if path.suffix != ".index"):
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()
    with tarfile.open(made[0] / "0000.tar") as tar:
        assert tar.getnames()[:3] == ["00000000.cls", "00000000.jpg", "00000000.json"]
    sizes = [path.stat().st_size for path in made[0].glob("*.tar")]
    assert max(sizes) <= 12_000 and len(list(made[0].glob("*.index"))) == len(sizes)


WEBDATASET = """
import hashlib, json, sys, webdataset
from pathlib import Path
images, out, ours = map(Path, sys.argv[1:])
with webdataset.ShardWriter(f"{out}/x-%03d.tar", maxcount=4, verbose=0) as writer:
    for i, file in enumerate(sorted(images.iterdir())):
        sample = {"__key__": f"part/{i:05}", "jpg": file.read_bytes(), "cls": i % 3, "json": {"number": i}}
        writer.write(sample)
files = sorted(map(str, ours.glob("*.tar")))
for sample in webdataset.WebDataset(files, shardshuffle=False):
    image = sample.get("jpg") or sample["png"]
    print(json.dumps([sample["__key__"], int(sample["cls"]), hashlib.sha256(image).hexdigest()]))
"""


@pytest.mark.skipif(find_spec("webdataset") is None, reason="the webdataset package is not installed")
def test_shards_written_by_webdataset_read_and_it_reads_ours(photo_folder, shards, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    command = [sys.executable, "-c", WEBDATASET, photo_folder / "dog", theirs, shards]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    source = open_source(str(theirs))
    dogs = sorted((photo_folder / "dog").iterdir())
    assert [source.read(i) for i in range(len(source))] == [file.read_bytes() for file in dogs]
    assert source.class_names == ("0", "1", "2") and [source.label(i) for i in range(12)] == [0, 1, 2] * 4
    assert source.metadata(7) == {"number": 7} and source.path_of(4) == f"{theirs}/x-001.tar:part/00004.jpg"
    assert (source.image_size, source.patch_size, source.channels) == (224, 16, 3)

    ours = open_source(str(shards))
    read = [[f"{i:08}", ours.label(i), hashlib.sha256(ours.read(i)).hexdigest()] for i in range(len(ours))]
    assert [json.loads(line) for line in done.stdout.splitlines()] == read


def test_labels_and_names_of_foreign_shards(tmp_path, make_image):
    image = make_image(1)
    write_tar(tmp_path / "a.tar", {
        "./set/one.JPG": image, "./set/one.cls": b"2\n", "./set/one.json": b'{"label": 7}', "./set/one.seg.png": b"?",
        "two.webp": image, "two.json": b'{"label": 1, "class_name": "fox"}',
        "README": b"no extension", ".hidden.jpg": b"no key", "no": b"",
    })  # fmt: skip
    for format, name in ((tarfile.GNU_FORMAT, "g"), (tarfile.PAX_FORMAT, "p")):
        write_tar(tmp_path / f"{name}.tar", {f"{name * 200}/ü.png": image, f"{name * 200}/ü.cls": b"0"}, format=format)
    source = open_source(str(tmp_path))
    assert [source.label(i) for i in range(4)] == [2, 1, 0, 0] and source.class_names == ("0", "1", "2")
    assert all(source.read(i) == image for i in range(4)) and len(source) == 4
    assert source.path_of(0) == f"{tmp_path}/a.tar:./set/one.JPG"
    assert source.path_of(3) == f"{tmp_path}/p.tar:{'p' * 200}/ü.png"

    write_tar(tmp_path / "z.tar", {"one.jpg": image, "two.jpg": image, "two.json": b'{"label": "fox"}'})
    unlabelled = open_source(str(tmp_path))
    assert unlabelled.class_names == () and unlabelled.label(0) == -1 and len(unlabelled) == 6
    single = open_source(str(write_tar(tmp_path / "z.tar", {"a.jpg": image, "a.cls": b"0"})))
    assert single.class_names == () and single.label(0) == -1


def test_specs(shards, photo_folder, tmp_path):
    whole = open_source(str(shards))
    count = len(list(shards.glob("*.tar")))
    last = count - 1
    ranged = open_source(f"{shards}/{{0000..{last:04}}}.tar")
    assert [ranged.read(i) for i in range(24)] == [whole.read(i) for i in range(24)]
    part = open_source(f"{shards}/{{0001..0002}}.tar")
    assert part.path_of(0).startswith(f"{shards}/0001.tar:") and part.class_names == ("cat", "dog")
    one = open_source(str(shards / "0001.tar"))
    assert one.read(0) == part.read(0) and len(one) < len(part) < 24
    (shards / "0000.tar").rename(shards / "x9.tar")
    (shards / "0001.tar").rename(shards / "x10.tar")
    assert len(open_source(f"{shards}/x{{9..10}}.tar")) > len(one)
    shutil.copy(shards / "x9.tar", photo_folder / "cat")
    shutil.copy(shards / "x9.tar", photo_folder)
    assert len(open_source(str(photo_folder))) == 24  # a folder of images, whatever else lies there


def test_each_mistake_in_a_spec_is_one_line(shards, tmp_path, one_line):
    count = len(list(shards.glob("*.tar")))
    (tmp_path / "empty.tar").mkdir()
    for spec, says in (
        ("{0003..0001}.tar", "is an empty range: 3 is above 1"),
        (f"{{0000..{count:04}}}.tar", f"{count:04}.tar does not exist"),
        ("{0000..99999999999}.tar", "more than 100000"),
        ("{0000..0001}-{0..1}.tar", "write a range of shards as {0000..0127}.tar"),
        ("{a..c}.tar", "write a range of shards as"),
        ("9999.tar", "9999.tar does not exist"),
        ("../empty.tar", "empty.tar is empty"),
    ):
        with pytest.raises(UserError) as error:
            open_source(f"{shards}/{spec}")
        assert says in one_line(error)
    with pytest.raises(UserError, match="has no test split"):
        open_source(str(shards), split="test")
    (shards / "0001.tar").unlink()
    with pytest.raises(UserError) as error:
        open_source(str(shards))
    assert f"{shards}/0001.tar is missing" in one_line(error)


def test_splits_of_foreign_shards(tmp_path, make_image, one_line):
    for split, labels in (("train", (0, 1, 2)), ("val", (1, 1))):
        (tmp_path / split).mkdir()
        members = {}
        for i, label in enumerate(labels):
            members |= {f"{i}.jpg": make_image(i), f"{i}.cls": b"%d" % label}
        write_tar(tmp_path / split / "0.tar", members)
    train, test = open_evaluation(str(tmp_path))
    assert train.class_names == test.class_names == ("0", "1", "2") and [test.label(i) for i in (0, 1)] == [1, 1]
    assert verify(str(tmp_path)).num_images == 5
    write_tar(tmp_path / "val" / "0.tar", {"7.jpg": make_image(7), "7.cls": b"3"})
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path), split="test")
    assert "val/0.tar: 7.jpg has the label 3, but there are only 3 classes" in one_line(error)


def broken(*_):
    raise AssertionError("the shard was read again")


def test_the_index_is_used_the_second_time(shards, monkeypatch):
    first = open_source(str(shards))
    monkeypatch.setattr(index_file, "members", broken)
    again = open_source(str(shards))
    assert [again.path_of(i) for i in range(24)] == [first.path_of(i) for i in range(24)]
    os.utime(shards / "0001.tar", ns=(1, 1))
    with pytest.raises(AssertionError, match="read again"):
        open_source(str(shards))


def test_a_stale_or_damaged_index_is_made_again(shards):
    file, expected = shards / "0000.tar.index", open_source(str(shards)).path_of(1)
    whole = file.read_bytes()
    damaged = [whole[:-1], b"", whole + b"\0", whole[:40]]
    for at in (0, 30, 60, 75, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        damaged.append(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    damaged.append(whole.replace(b'"samples": ', b'"samples": 1' + b"0" * 15))
    for data in damaged:
        file.write_bytes(data)
        assert open_source(str(shards)).path_of(1) == expected
        assert file.read_bytes() == whole
    os.utime(shards / "0000.tar", ns=(5, 5))
    assert open_source(str(shards)).path_of(1) == expected
    assert json.loads(file.read_bytes().partition(b"\n")[0])["mtime_ns"] == 5
    assert not list(shards.glob(".*"))


def test_an_index_that_points_outside_its_shard_is_not_believed(shards):
    shard = shards / "0000.tar"
    index, version = index_file.open_index(shard)
    for column, value in (
        ("start", -1), ("start", 1 << 62), ("size", 1 << 62), ("size", version.size), ("json_size", 1 << 30),
        ("json_start", version.size), ("label", -2), ("label", 1 << 30), ("name_end", 0), ("names", 10),
    ):  # fmt: skip
        changed = getattr(index, column).copy()
        changed[-1] = value
        index_file.save_index(shard, version, index._replace(**{column: changed}))
        assert index_file.load_index(shard, version) is None, column
    index_file.save_index(shard, version, index)
    assert index_file.load_index(shard, version) is not None


def test_a_folder_that_cannot_be_written_to(shards, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    expected = batches(open_source(str(shards)), 1)
    for file in shards.glob("*.index"):
        file.unlink()
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert same_pixels(batches(open_source(str(shards)), 1), expected)
    assert not list(shards.glob("*.index"))


def test_a_shard_that_changes_gives_an_error_and_never_other_bytes(shards):
    """Truncated, overwritten, replaced or gone, before it is opened and after."""
    whole = (shards / "0000.tar").read_bytes()
    for opened_before in (False, True):
        for change in ("truncate", "overwrite", "replace", "vanish"):
            (shards / "0000.tar").write_bytes(whole)
            source = open_source(str(shards))
            data = source.read(0) if opened_before else None
            if change == "truncate":
                os.truncate(shards / "0000.tar", 1000)
            elif change == "overwrite":
                (shards / "0000.tar").write_bytes(bytes(len(whole)))
            elif change == "replace":
                (shards / "new").write_bytes(bytes(len(whole)))
                os.replace(shards / "new", shards / "0000.tar")
            else:
                (shards / "0000.tar").unlink()
            if opened_before and change in ("replace", "vanish"):
                assert source.read(0) == data  # the old file, as long as it is open
            else:
                with pytest.raises(OSError) as error:
                    source.read(0)
                assert change == "vanish" or "0000.tar was changed" in error.value.strerror
    failures = [f for b in batches(source, 3, workers=1) for f in b.failures]
    assert all(f.path.startswith(str(shards / "0000.tar")) for f in failures)


def test_threads_and_forked_workers_read_the_same_through_few_files(shards, monkeypatch):
    monkeypatch.setattr(reader, "MAX_OPEN", 2)
    source = open_source(str(shards))
    expected = [source.read(i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, [*range(24)] * 20)) == expected * 20
    single = batches(source, 6)
    for workers in (1, 2):
        assert same_pixels(batches(source, 6, workers=workers), single)
    gc.collect()
    open_tars = [f for f in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{f}")]
    open_tars = [f for f in open_tars if ".tar" in os.readlink(f"/proc/self/fd/{f}")]
    assert len(open_tars) <= 2


def many(number: int):
    """Members of a shard that nobody has to store."""
    return (Member(f"{i:08}.jpg", 512 + 1024 * i, 500) for i in range(number))


def test_an_index_of_a_million_images_is_a_few_arrays():
    index = build_index(many(1_000_000), broken)
    assert index.num_samples == 1_000_000 and index.name(999_999) == "00999999.jpg"
    assert sum(column.nbytes for column in index) <= 60_000_000
    tracemalloc.start()
    try:
        build_index(many(100_000), broken)
        assert tracemalloc.get_traced_memory()[1] < 150 * 100_000
    finally:
        tracemalloc.stop()


def test_the_command_writes_every_split(poses, tmp_path, capfd):
    out = tmp_path / "shards"
    assert main(["data", "shard", f"poses:{poses}", str(out)]) == 0
    assert main(["data", "verify", str(out)]) == 0
    assert "36 images, 0 bad" in capfd.readouterr().out
    again = tmp_path / "again"
    assert main(["data", "shard", str(out), str(again)]) == 0
    first, second = open_source(str(out), split="test"), open_source(str(again), split="test")
    assert [first.read(i) for i in range(12)] == [second.read(i) for i in range(12)]
    assert first.class_names == second.class_names and first.label(7) == second.label(7)
