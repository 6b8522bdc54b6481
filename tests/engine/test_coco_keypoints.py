"""COCO keypoints from a small made folder of the published layout, and from files with every kind of mistake."""

import copy
import json

import pytest
import torch
from PIL import Image

from misplace.engine.data import PartImages, load_eval, open_evaluation, open_source
from misplace.engine.errors import UserError

KEYPOINTS = ["nose", "left_eye", "right_eye"]
CONTENT = {
    "info": {"year": 2017},
    "licenses": [],
    "images": [
        {"id": 397133, "file_name": "000000397133.jpg", "width": 60, "height": 50},
        {"id": 252219, "file_name": "000000252219.jpg", "width": 60, "height": 50},
        {"id": 5, "file_name": "000000000005.jpg", "width": 60, "height": 50},
    ],
    "annotations": [
        {"image_id": 397133, "category_id": 1, "iscrowd": 0, "bbox": [2, 3, 20.5, 40], "keypoints": [7, 8, 2] * 3},
        {"image_id": 252219, "category_id": 1, "bbox": [0, 0, 30, 10], "keypoints": [1, 2, 2, 3, 4, 1, 0, 0, 0]},
        {"image_id": 397133, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 5, 5], "keypoints": [0] * 6 + [3, 3, 2]},
        {"image_id": 5, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 5, 5], "keypoints": [0] * 9},
        {"image_id": 5, "category_id": 1, "iscrowd": 1, "bbox": [1, 1, 5, 5], "keypoints": [3, 3, 2] * 3},
        {"image_id": 5, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 5, 0], "keypoints": [3, 3, 2] * 3},
        {"image_id": 5, "category_id": 18, "iscrowd": 0, "bbox": [1, 1, 5, 5]},
    ],
    "categories": [{"id": 1, "name": "person", "keypoints": KEYPOINTS, "skeleton": [[1, 2]]}, {"id": 18}],
}  # fmt: skip


def write(root, text, split="train"):
    """The folders of the archives, with one annotation file of this text (bytes) or content."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    (root / "annotations" / f"person_keypoints_{split}2017.json").write_bytes(data)
    (root / f"{split}2017").mkdir(exist_ok=True)
    for entry in CONTENT["images"]:
        Image.new("RGB", (60, 50), (9, 100, 200)).save(root / f"{split}2017" / entry["file_name"])
    return root


def test_pictures_people_and_keypoints(tmp_path):
    write(tmp_path, CONTENT)
    write(tmp_path, CONTENT, split="val")
    train, test = open_evaluation(f"coco-keypoints:{tmp_path}")
    assert isinstance(train, PartImages) and not train.has_masks
    assert (len(train), len(test)) == (2, 2)  # the third picture shows nobody whose keypoints are visible
    assert train.part_classes == tuple(KEYPOINTS) and train.class_names == () and train.label(0) == -1
    assert train.path_of(0) == str(tmp_path / "train2017" / "000000252219.jpg")
    assert test.path_of(1) == str(tmp_path / "val2017" / "000000397133.jpg")
    nose, eye, other = train.parts(0)
    assert (nose.part_class, nose.x, nose.y, nose.side, nose.visible) == (0, 1.0, 2.0, pytest.approx(6.0), True)
    assert (eye.x, eye.y, eye.visible, other.visible) == (3.0, 4.0, False, False)  # v = 1: hidden
    two = train.parts(1)
    assert [part.part_class for part in two] == [0, 1, 2, 0, 1, 2]
    assert [part.visible for part in two] == [True, True, True, False, False, True]
    assert [part.side for part in two] == pytest.approx([8.0] * 3 + [1.0] * 3)


def test_images_are_read_as_those_of_any_source(tmp_path):
    images, kept = load_eval(open_source(f"coco-keypoints:{write(tmp_path, CONTENT)}"), torch.arange(2), 16)
    assert images.shape == (2, 16, 16, 3) and kept.tolist() == [0, 1]


def changed(change):
    content = copy.deepcopy(CONTENT)
    change(content)
    return content


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "line 1: not JSON"),
        (b'{"images": [\n,]}', "line 2: not JSON"),
        (b"\xff\xfe\xfa", "not JSON that can be read"),
        (b"[" * 200_000, "not JSON that can be read"),
        (b'{"images": ' + b"9" * 6000 + b"}", "not JSON that can be read"),
        (b"[1, 2]", "is not a JSON object"),
        ({}, "has no list of categories"),
        (changed(lambda c: c["categories"].clear()), "0 categories with keypoints"),
        (changed(lambda c: c["categories"][0].update(keypoints=[1, 2])), "are not names"),
        (changed(lambda c: c["categories"][0].update(id="1")), "'1' is not the number of an entry"),
        (changed(lambda c: c.update(images={})), "has no list of images"),
        (changed(lambda c: c["images"].append(7)), "an entry of images is not an object"),
        (changed(lambda c: c["images"][0].update(id=None)), "'None' is not the number"),
        (changed(lambda c: c["images"][0].update(file_name="/etc/passwd")), r"id 397133\): file_name is not the name"),
        (changed(lambda c: c["images"][0].update(file_name="../x.jpg")), "file_name is not the name"),
        (changed(lambda c: c["images"][0].update(file_name=["x"])), "file_name is not the name"),
        (changed(lambda c: c["annotations"].insert(0, "x")), "annotation 0 is not an object"),
        (changed(lambda c: c["annotations"][1].update(image_id=99)), "annotation 1: image 99 is not among the images"),
        (changed(lambda c: c["annotations"][1].update(image_id=True)), "annotation 1: image_id: 'True' is not"),
        (changed(lambda c: c["annotations"][0].update(keypoints=[1, 2])), "annotation 0: keypoints: not a list of 9"),
        (changed(lambda c: c["annotations"][0].update(keypoints=[1, 2, 3] * 3)), "annotation 0: the visibility"),
        (changed(lambda c: c["annotations"][0].update(keypoints=["1", 2, 2] * 3)), "annotation 0: keypoints: has a"),
        (changed(lambda c: c["annotations"][0].update(keypoints=[float("nan"), 2, 2] * 3)), "keypoints: has a value"),
        (changed(lambda c: c["annotations"][0].update(bbox=[0, 0, 10**400, 1])), "annotation 0: bbox: has a value"),
        (changed(lambda c: c["annotations"][0].pop("bbox")), "annotation 0: bbox: not a list of 4"),
        (changed(lambda c: c["annotations"].clear()), "has no visible keypoints"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as error:
        open_source(f"coco-keypoints:{write(tmp_path, text)}")
    line = str(error.value)
    assert "\n" not in line and "person_keypoints_train2017.json" in line


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"person_keypoints_train2017.json is missing: give the folder"):
        open_source(f"coco-keypoints:{tmp_path}")
    with pytest.raises(UserError, match="coco-keypoints:DIR"):
        open_source("coco-keypoints")
