"""Kept features: found only where nothing that they depend on has changed, and never trusted blindly."""

import os

import pytest
import torch

from misplace.engine.data import open_source
from misplace.engine.evaluation import Study, open_study_splits, pixel_subject
from misplace.engine.evaluation.cache import FeatureCache, default_cache, images_digest

CPU = torch.device("cpu")


class Counted:
    """A function that makes features, and how often it did."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"features": torch.arange(6.0).view(2, 3), "indices": torch.tensor([4, 5])}


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "features")


def test_made_once(cache):
    make = Counted()
    first, again = (cache.get(("a", "b"), make) for _ in range(2))
    assert make.calls == 1
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    cache.get(("a", "c"), make)
    cache.get(("ab", ""), make)
    assert make.calls == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_file_is_made_again(cache, damage, capsys):
    make = Counted()
    cache.get(("a",), make)
    (path,) = cache.folder.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-9]), "empty": b"", "text": b"features"}[damage])
    found = cache.get(("a",), make)
    assert make.calls == 2 and torch.equal(found["features"], make()["features"])
    assert "is damaged" in capsys.readouterr().out
    cache.get(("a",), make)
    assert make.calls == 3  # ours above, and none for a mended file


def test_the_least_lately_used_goes(tmp_path):
    cache = FeatureCache(tmp_path / "features", largest=2 * 4096 + 3000)
    for number, name in enumerate("abc"):
        cache.get((name,), lambda: {"x": torch.zeros(1024)})
        os.utime(cache.folder / cache.key((name,)), (number, number))
    assert {entry.name for entry in cache.folder.iterdir()} == {cache.key((name,)) for name in "bc"}
    used = cache.get(("b",), lambda: pytest.fail("it was kept"))
    assert used["x"].shape == (1024,)
    cache.get(("d",), lambda: {"x": torch.zeros(1024)})
    assert {entry.name for entry in cache.folder.iterdir()} == {cache.key((name,)) for name in "bd"}


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    said = []
    (tmp_path / "file").write_text("no folder")
    cache = FeatureCache(tmp_path / "file" / "features", say=said.append)
    assert torch.equal(cache.get(("a",), Counted())["indices"], torch.tensor([4, 5]))
    assert len(said) == 1 and "not kept" in said[0]


def test_the_key_follows_the_images_bytes(images, tmp_path):
    source = open_source(str(images))
    indices = torch.arange(8)
    before = images_digest(source, indices)
    assert before == images_digest(open_source(str(images)), indices)
    assert before != images_digest(source, indices.flip(0)) and before != images_digest(source, indices[:7])
    with open(source.path_of(3), "ab") as file:
        file.write(b"\0")
    assert before != images_digest(source, indices)
    os.unlink(source.path_of(3))
    assert images_digest(source, indices) not in (before, images_digest(source, indices[:7]))


def test_a_study_takes_what_was_kept(images, cache):
    train, test = open_study_splits(str(images), num_train=20, num_test=10)
    subject = pixel_subject(24, 6)
    fresh = Study((subject,), train, test, CPU).features(subject, test)
    study = Study((subject,), train, test, CPU, cache=cache)
    first, again = (study.features(subject, test) for _ in range(2))
    assert len(list(cache.folder.iterdir())) == 1
    for found in (first, again):
        assert torch.equal(found.features, fresh.features) and torch.equal(found.labels, fresh.labels)
    study.features(subject, test, "class")
    study.features(subject, train)
    assert len(list(cache.folder.iterdir())) == 3


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("MISPLACE_DATA", str(tmp_path))
    assert default_cache() == tmp_path / "features"
