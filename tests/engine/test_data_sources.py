"""Sources: folders as users have them, Fashion-MNIST, and one line for each mistake."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from misplace.engine.data import load_eval, open_evaluation, open_source
from misplace.engine.data.fashion_mnist import DEBIAN_FOLDER
from misplace.engine.data.image_folder import PackedNames
from misplace.engine.data.poses import render_dataset
from misplace.engine.errors import UserError

needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="Debian package dataset-fashion-mnist is not installed"
)


def names(source) -> list[str]:
    return [os.path.relpath(source.path_of(i), source.root) for i in range(len(source))]


def test_subfolders_are_classes(photo_folder):
    source = open_source(str(photo_folder))
    assert source.class_names == ("cat", "dog")
    assert names(source) == [f"{c}/{i:02}.jpg" for c in ("cat", "dog") for i in range(12)]
    assert [source.label(i) for i in range(24)] == [0] * 12 + [1] * 12
    assert source.read(5) == (photo_folder / "cat" / "05.jpg").read_bytes()
    assert (source.image_size, source.patch_size, source.channels) == (224, 16, 3)


def test_what_is_found_in_a_folder(photo_folder, make_image):
    deep = photo_folder / "cat" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "deep.JPEG").write_bytes(make_image(1))
    (photo_folder / "stray.png").write_bytes(make_image(2))
    (photo_folder / "cat" / "notes.txt").write_text("no image")
    (photo_folder / "cat" / "folder.jpg").mkdir()
    (photo_folder / "cat" / ".hidden.jpg").write_bytes(make_image(3))
    (photo_folder / "empty").mkdir()
    source = open_source(str(photo_folder))
    assert source.class_names == ("cat", "dog", "empty")
    assert len(source) == 25 and "cat/a/b/deep.JPEG" in names(source)
    assert source.label(names(source).index("cat/a/b/deep.JPEG")) == 0
    assert source.label(24) == 1


def test_a_flat_folder_is_unlabelled(photo_folder):
    source = open_source(str(photo_folder / "dog"))
    assert source.class_names == () and len(source) == 12 and source.label(3) == -1


def test_images_beside_folders_without_any(photo_folder):
    (photo_folder / "dog" / "metadata").mkdir()
    source = open_source(str(photo_folder / "dog"))
    assert source.class_names == () and len(source) == 12


def test_one_class_is_no_label(photo_folder):
    (photo_folder / "all").mkdir()
    (photo_folder / "cat").rename(photo_folder / "all" / "cat")
    source = open_source(str(photo_folder / "all"))
    assert source.class_names == () and len(source) == 12 and source.label(0) == -1


def test_links_are_followed_but_not_in_circles(photo_folder):
    (photo_folder / "fox").symlink_to(photo_folder / "dog", target_is_directory=True)
    (photo_folder / "cat" / "up").symlink_to(photo_folder, target_is_directory=True)
    (photo_folder / "cat" / "here").symlink_to(".", target_is_directory=True)
    (photo_folder / "cat" / "itself.jpg").symlink_to("itself.jpg")
    (photo_folder / "cat" / "itself").symlink_to("itself")
    source = open_source(str(photo_folder))
    assert source.class_names == ("cat", "dog", "fox")
    assert [source.label(i) for i in range(len(source))].count(2) == 12
    assert not any("here" in name or "itself" in name or "up/cat" in name for name in names(source))


def test_names_that_are_not_utf8(tmp_path, make_image):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    Path(os.fsdecode(name)).write_bytes(make_image(1))
    source = open_source(str(tmp_path))
    assert source.read(0) == make_image(1)
    source.path_of(0).encode()


def test_packed_names():
    packed = PackedNames(["a.jpg", "", "ä/b.png"])
    assert [packed[i] for i in range(len(packed))] == ["a.jpg", "", "ä/b.png"]


@pytest.mark.parametrize("test_name", ["val", "test"])
def test_splits(photo_folder, test_name, one_line):
    root = photo_folder.parent / "root"
    root.mkdir()
    photo_folder.rename(root / "train")
    (root / test_name / "dog").mkdir(parents=True)
    (root / "train" / "dog" / "11.jpg").rename(root / test_name / "dog" / "11.jpg")
    train, test = open_evaluation(str(root))
    assert len(train) == 23 and train.class_names == ("cat", "dog")
    assert len(test) == 1 and test.class_names == ("cat", "dog") and test.label(0) == 1
    assert len(open_source(str(root))) == 23

    (root / test_name / "dog").rename(root / test_name / "wolf")
    with pytest.raises(UserError) as error:
        open_source(str(root), split="test")
    assert "wolf is a class that the training split does not have" in one_line(error)


def test_a_folder_without_splits(photo_folder):
    train, test = open_evaluation(str(photo_folder))
    assert len(train) == 24 and test is None
    with pytest.raises(UserError, match="has no test split"):
        open_source(str(photo_folder), split="test")
    with pytest.raises(ValueError, match="split must be one of"):
        open_source(str(photo_folder), split="validation")


def test_each_mistake_is_one_line(tmp_path, monkeypatch, one_line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("a")
    for spec, says in (
        ("missing", "missing does not exist"),
        ("empty", "empty is empty"),
        ("documents", "holds no images (.jpg .jpeg .png .webp .bmp) but a.txt"),
        ("documents/a.txt", "a.txt is a file: give the folder"),
    ):
        with pytest.raises(UserError) as error:
            open_source(str(tmp_path / spec))
        assert says in one_line(error) and str(tmp_path) in str(error.value)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / "documents"))
    assert "documents cannot be read: Permission denied" in one_line(error)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture(params=["", ".gz"])
def idx_folder(tmp_path, request) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for prefix, count in (("train", 6), ("t10k", 3)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{request.param}", images[:count])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{request.param}", np.arange(count, dtype=np.uint8))
    return tmp_path


def test_idx_files_of_any_folder(idx_folder):
    train, test = open_evaluation(f"fashion-mnist:{idx_folder}")
    assert (len(train), len(test)) == (6, 3)
    assert train.read(4).shape == (28, 28, 1) and train.label(4) == 4
    assert np.array_equal(train.read(2), test.read(2))
    assert train.path_of(4).endswith("[4]")


def test_damaged_idx_files(idx_folder, one_line):
    images = next(idx_folder.glob("train-images*"))
    labels = next(idx_folder.glob("train-labels*"))
    whole = images.read_bytes()
    for data in (b"", whole[:3], whole[:10], whole[:-5], b"GIF89a" + whole):
        images.write_bytes(data)
        with pytest.raises(UserError) as error:
            open_source(f"fashion-mnist:{idx_folder}")
        assert str(images) in one_line(error)
    for shape in ((6, 20, 28), (5, 28, 28)):
        write_idx(images, np.zeros(shape, dtype=np.uint8))
        with pytest.raises(UserError, match="not n x 28 x 28"):
            open_source(f"fashion-mnist:{idx_folder}")
    images.write_bytes(whole)
    write_idx(labels, np.arange(5, 11, dtype=np.uint8))
    with pytest.raises(UserError, match="not 0 to 9"):
        open_source(f"fashion-mnist:{idx_folder}")


def test_a_header_that_claims_too_much(tmp_path):
    for name, axes in (("images-idx3", 3), ("labels-idx1", 1)):
        header = struct.pack(f">HBB{axes}I", 0, 8, axes, *[2**31 - 1] * axes)
        (tmp_path / f"train-{name}-ubyte").write_bytes(header)
    with pytest.raises(UserError, match="claims"):
        open_source(f"fashion-mnist:{tmp_path}")


def test_missing_fashion_mnist_names_the_package(tmp_path, one_line):
    with pytest.raises(UserError) as error:
        open_source(f"fashion-mnist:{tmp_path}")
    assert "apt install dataset-fashion-mnist" in one_line(error)


def test_poses_of_a_folder(tmp_path):
    root = render_dataset(tmp_path / "poses", train=16, test=8, size=32, workers=1)
    train, test = open_evaluation(f"poses:{root}")
    assert (len(train), len(test), train.channels) == (16, 8, 3)
    images, kept = load_eval(test, torch.arange(8), 24)
    assert images.shape == (8, 24, 24, 3) and len(kept) == 8


@needs_fashion_mnist
def test_the_real_fashion_mnist():
    train, test = open_evaluation("fashion-mnist")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert np.bincount([test.label(i) for i in range(10_000)]).tolist() == [1000] * 10
    pixels = np.stack([train.read(i) for i in range(60_000)]) / np.float32(255)
    assert train.mean[0] == pytest.approx(pixels.mean(), abs=1e-4)
    assert train.std[0] == pytest.approx(pixels.std(), abs=1e-4)
    assert train.class_names[train.label(0)] == "Ankle boot"
    images, kept = load_eval(test, torch.tensor([7, 3]), 28)
    assert kept.tolist() == [7, 3] and np.array_equal(images[1].numpy(), test.read(3))
