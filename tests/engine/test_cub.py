"""CUB-200-2011 from a small made folder of the published layout, and from folders with every kind of mistake."""

import io

import pytest
import torch
from PIL import Image

from misplace.engine.data import PartImages, load_eval, open_evaluation, open_source
from misplace.engine.errors import UserError

PARTS = ("back", "beak", "left eye")
NAMES = (
    "001.Black_footed_Albatross/Black_footed_Albatross_0001_796111.jpg",
    "001.Black_footed_Albatross/Black_footed_Albatross_0002_55.jpg",
    "002.Laysan_Albatross/Laysan_Albatross_0001_545.jpg",
    "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
)
FILES = {
    "images.txt": "".join(f"{i} {name}\n" for i, name in enumerate(NAMES, 1)),
    "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
    "train_test_split.txt": "1 0\n2 1\n3 1\n4 0\n",
    "bounding_boxes.txt": "1 60.0 27.0 325.0 304.0\n2 10.0 5.0 40.0 20.0\n3 1.0 1.0 8.5 30.0\n4 0.0 0.0 50.0 40.0\n",
    "parts/parts.txt": "".join(f"{i} {name}\n" for i, name in enumerate(PARTS, 1)),
    "parts/part_locs.txt": "1 1 0.0 0.0 0\n1 2 312.0 182.0 1\n1 3 186.0 45.0 1\n"
    "2 1 12.0 8.5 1\n2 2 0.0 0.0 0\n2 3 20.0 9.0 1\n3 1 5.0 6.0 1\n4 1 9.0 9.0 1\n",
}


def write(root, **changes):
    """The folder of the archive; changes: file name with __ for / and no suffix -> its text, None leaves it out."""
    for name, text in FILES.items():
        text = changes.get(name.removesuffix(".txt").replace("/", "__"), text)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for i, name in enumerate(NAMES):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 50), (20 * i, 100, 200)).save(path)
    return root


def test_splits_classes_boxes_and_parts(tmp_path):
    train, test = open_evaluation(f"cub:{write(tmp_path)}")
    assert isinstance(train, PartImages) and not train.has_masks
    assert train.class_names == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    assert train.part_classes == PARTS
    assert [train.label(i) for i in range(len(train))] == [0, 1]
    assert [test.label(i) for i in range(len(test))] == [0, 1]
    assert test.path_of(0) == str(tmp_path / "images" / NAMES[0])
    hidden, beak, eye = test.parts(0)
    assert not hidden.visible and beak.visible
    assert (beak.part_class, beak.x, beak.y, beak.side) == (1, 312.0, 182.0, 0.25 * 325)
    assert (eye.part_class, eye.x, eye.y, eye.side) == (2, 186.0, 45.0, 0.25 * 325)
    assert [part.visible for part in train.parts(1)] == [True, False, False]  # no line: not visible
    assert train.parts(1)[0].side == 0.25 * 30
    assert test.part_mask(0) is None


def test_images_are_read_as_those_of_any_source(tmp_path):
    source = open_source(f"cub:{write(tmp_path)}")
    images, kept = load_eval(source, torch.arange(2), 16)
    assert images.shape == (2, 16, 16, 3) and kept.tolist() == [0, 1]
    assert Image.open(io.BytesIO(source.read(0))).size == (60, 50)


def test_folder_above_will_do(tmp_path):
    write(tmp_path / "CUB_200_2011")
    assert len(open_source(f"cub:{tmp_path}", split="test")) == 2


def test_numbers_need_not_be_in_order(tmp_path):
    shuffled = {
        "images": f"9 {NAMES[2]}\n4 {NAMES[0]}\n",
        "image_class_labels": "4 1\n9 2\n",
        "train_test_split": "9 1\n4 1\n",
        "bounding_boxes": "4 0 0 10 10\n\n9 0 0 20 20\n",
        "parts__part_locs": "4 2 3.5 4 1\n",
    }
    source = open_source(f"cub:{write(tmp_path, **shuffled)}")
    assert source.path_of(0).endswith(NAMES[2]) and [source.label(0), source.label(1)] == [1, 0]
    assert [part.visible for part in source.parts(1)] == [False, True, False]
    assert source.parts(0)[0].side == 5.0


def test_a_picture_that_is_gone_is_left_out(tmp_path, caplog):
    source = open_source(f"cub:{write(tmp_path)}")
    (tmp_path / "images" / NAMES[1]).unlink()
    _, kept = load_eval(source, torch.arange(2), 16)
    assert kept.tolist() == [1] and "the file is gone" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": None}, "images.txt is missing"),
        ({"parts__part_locs": None}, "part_locs.txt is missing"),
        ({"images": ""}, "images.txt is empty"),
        ({"images": b"\xff\xfe\x00"}, "images.txt is not text in UTF-8"),
        ({"images": "1\n"}, r"images.txt, line 1: has 1 words, 2 are needed"),
        ({"images": "1 /etc/passwd\n"}, r"images.txt, line 1: '/etc/passwd' is not the name of a file below"),
        ({"images": "1 a/../../secret.jpg\n"}, r"line 1: 'a/../../secret.jpg' is not the name"),
        ({"images": "1 C:\\x.jpg\n"}, r"line 1: .* is not the name of a file"),
        ({"images": f"1 {NAMES[0]}\n01 {NAMES[1]}\n"}, r"images.txt, line 2: number 1 is there twice"),
        ({"images": f"x {NAMES[0]}\n"}, r"line 1: 'x' is not a whole number"),
        ({"images": f"-1 {NAMES[0]}\n"}, r"line 1: '-1' is not a whole number"),
        ({"images": f"{'9' * 5000} {NAMES[0]}\n"}, r"line 1: '9{40}' is not a whole number"),
        ({"images": FILES["images.txt"] + "5 a/b.jpg\n"}, r"train_test_split.txt has no line for image 5"),
        ({"image_class_labels": "1 1\n2 1\n3 2\n"}, r"image_class_labels.txt has no line for image 4"),
        ({"image_class_labels": "1 1\n2 7\n3 2\n4 2\n"}, r"image_class_labels.txt, line 2: class 7 is not in classes"),
        ({"image_class_labels": "1 1\n77 1\n"}, r"image_class_labels.txt, line 2: image 77 is not in images.txt"),
        ({"train_test_split": "1 0\n2 0\n3 0\n4 0\n"}, r"train_test_split.txt has no train images"),
        ({"train_test_split": "1 0.5\n"}, r"train_test_split.txt, line 1: '0.5' is not a whole number"),
        ({"bounding_boxes": "1 1 1 5 5\n2 1 1 5 0\n"}, r"bounding_boxes.txt, line 2: the box is empty"),
        ({"bounding_boxes": "1 1 1 nan 5\n"}, r"bounding_boxes.txt, line 1: 'nan' is not a number of pixels"),
        ({"bounding_boxes": "1 1 1 1e9 5\n"}, r"bounding_boxes.txt, line 1: '1e9' is not a number of pixels"),
        ({"parts__part_locs": "1 9 1 1 1\n"}, r"part_locs.txt, line 1: part 9 is not in parts.txt"),
        ({"parts__part_locs": "1 1 1 1 2\n"}, r"part_locs.txt, line 1: '2' is not a whole number from 0 to 1"),
        ({"parts__part_locs": "1 1 1 inf 1\n"}, r"part_locs.txt, line 1: 'inf' is not a number of pixels"),
        ({"parts__part_locs": "1 1 1 1\n"}, r"part_locs.txt, line 1: has 4 words, 5 are needed"),
        ({"parts__part_locs": "8 1 1 1 1\n"}, r"part_locs.txt, line 1: image 8 is not in images.txt"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        open_source(f"cub:{write(tmp_path, **changes)}")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_name_alone_is_not_enough():
    with pytest.raises(UserError, match="cub:DIR"):
        open_source("cub")


def test_file_that_is_no_file(tmp_path):
    write(tmp_path, images=None)
    (tmp_path / "images.txt").mkdir()
    with pytest.raises(UserError, match=r"images.txt is missing"):
        open_source(f"cub:{tmp_path}")
