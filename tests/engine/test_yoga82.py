"""YOGA-82 from a made folder of its published layout, and every way in which one can be wrong."""

import logging

import pytest

from misplace.engine.data import load_eval, open_evaluation, open_source
from misplace.engine.data.yoga82 import CLASSES, read_line
from misplace.engine.errors import UserError

POSES = (  # folder, labels of 6, 20 and 82, as the published lists have them
    ("Akarna_Dhanurasana", 1, 8, 0),
    ("Bharadvaja's_Twist_pose_or_Bharadvajasana_I_", 1, 5, 1),
    ("Boat_Pose_or_Paripurna_Navasana_", 5, 19, 2),
    ("Sitting pose 1 (normal)", 1, 4, 57),
)


@pytest.fixture
def folder(tmp_path, make_image):
    """Three training images and one test image of each of four poses."""
    root = tmp_path / "yoga"
    lists = {"train": [], "test": []}
    for pose, (name, *labels) in enumerate(POSES):
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"{i}_{pose}.jpg").write_bytes(make_image(10 * pose + i))
            lists["test" if i == 3 else "train"].append(f"{name}/{i}_{pose}.jpg,{','.join(map(str, labels))}\n")
    for split, lines in lists.items():
        (root / f"yoga_{split}.txt").write_text("".join(lines))
    return root


def rewrite(folder, change, split="train"):
    path = folder / f"yoga_{split}.txt"
    path.write_text(change(path.read_text()))


def test_reads_both_splits(folder):
    train, test = open_evaluation(f"yoga82:{folder}")
    assert (len(train), len(test)) == (12, 4)
    assert [train.label(i) for i in range(12)] == [0] * 3 + [1] * 3 + [2] * 3 + [57] * 3
    assert [test.label(i) for i in range(4)] == [0, 1, 2, 57]
    assert train.missing == test.missing == ()
    assert test.path_of(3) == str(folder / "Sitting pose 1 (normal)" / "3_3.jpg")
    images, kept = load_eval(test, range(4), 32)
    assert images.shape == (4, 32, 32, 3) and kept.tolist() == [0, 1, 2, 3]


def test_hierarchy(folder):
    source = open_source(f"yoga82:{folder}", split="test")
    group, variation, pose = source.hierarchy
    assert tuple(len(level.class_names) for level in source.hierarchy) == CLASSES
    assert [len(level.of_pose) for level in source.hierarchy] == [82] * 3
    assert [group.class_names[group.of_pose[label]] for label in (0, 1, 2, 57)] == [
        "sitting",
        "sitting",
        "wheel",
        "sitting",
    ]
    assert [variation.of_pose[label] for label in (0, 1, 2, 57)] == [8, 5, 19, 4]
    assert variation.class_names[19] == "wheel 19"
    assert pose.of_pose == tuple(range(82)) and pose.class_names == source.class_names
    assert source.class_names[1] == "Bharadvaja's_Twist_pose_or_Bharadvajasana_I"
    assert source.class_names[81] == "pose 81"


def test_missing_images_are_counted_named_and_left_out(folder, caplog):
    gone = [folder / "Akarna_Dhanurasana" / f"{i}_0.jpg" for i in range(3)] + [folder / POSES[1][0] / "0_1.jpg"]
    for path in gone:
        path.unlink()
    with caplog.at_level(logging.WARNING, "misplace.data"):
        train, test = open_evaluation(f"yoga82:{folder}")
    assert len(train) == 8 and train.label(0) == 1
    assert train.missing == tuple(str(path.relative_to(folder)) for path in gone)
    assert len(test) == 4 and test.missing == ()
    (line,) = [r.getMessage() for r in caplog.records]
    assert "4 of 12 train images are missing: Akarna_Dhanurasana/0_0.jpg" in line and line.endswith(", ...")


def test_a_damaged_image_is_left_out_when_it_is_read(folder, caplog):
    (folder / "Akarna_Dhanurasana" / "0_0.jpg").write_bytes(b"<html>404</html>")
    _, kept = load_eval(open_source(f"yoga82:{folder}"), range(12), 32)
    assert kept.tolist() == list(range(1, 12))
    assert "0_0.jpg (not a JPEG" in caplog.text


def test_images_in_a_folder_of_their_own(folder):
    (folder / "images").mkdir()
    for name, *_ in POSES:
        (folder / name).rename(folder / "images" / name)
    assert open_source(f"yoga82:{folder}").path_of(0) == str(folder / "images" / "Akarna_Dhanurasana" / "0_0.jpg")


def test_a_byte_order_mark_spaces_blank_lines_and_carriage_returns_are_no_harm(folder):
    rewrite(folder, lambda text: "\ufeff " + text.replace("\n", "\r\n\n"))
    assert open_source(f"yoga82:{folder}").path_of(0) == str(folder / "Akarna_Dhanurasana" / "0_0.jpg")


BAD_LINES = {
    "too few fields": ("A/1.jpg,1,8", "is not `folder/image,label,label,label`"),
    "a word for a label": ("A/1.jpg,1,8,zero", "is not `folder/image"),
    "a negative label": ("A/1.jpg,1,-8,0", "is not `folder/image"),
    "a label of many digits": ("A/1.jpg,1,8," + "0" * 5000, "is not `folder/image"),
    "a label in other digits": ("A/1.jpg,1,8,٣", "is not `folder/image"),
    "label 6 of 6": ("A/1.jpg,6,8,0", "label 6 is not in 0 to 5"),
    "label 20 of 20": ("A/1.jpg,1,20,0", "label 20 is not in 0 to 19"),
    "label 82 of 82": ("A/1.jpg,1,8,82", "label 82 is not in 0 to 81"),
    "an absolute path": ("/etc/passwd,1,8,0", "no path of an image in a folder below"),
    "a path upwards": ("A/../../secret.jpg,1,8,0", "no path of an image in a folder below"),
    "a path upwards, backslashes": ("A\\..\\secret.jpg,1,8,0", "no path of an image in a folder below"),
    "no folder": ("1.jpg,1,8,0", "no path of an image in a folder below"),
    "no file": (",1,8,0", "no path of an image in a folder below"),
    "an escape": ("A/\x1b[2J.jpg,1,8,0", "no path of an image in a folder below"),
    "a zero byte": ("A/\0.jpg,1,8,0", "no path of an image in a folder below"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_lines_are_refused_with_their_number(folder, kind):
    line, message = BAD_LINES[kind]
    rewrite(folder, lambda text: text + line + "\n")
    with pytest.raises(UserError, match=message) as error:
        open_source(f"yoga82:{folder}")
    assert "yoga_train.txt:13: " in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_a_name_with_a_comma_is_a_name():
    assert read_line("A, B/1,2.jpg,1,8,0\n", "here").file == "A, B/1,2.jpg"


def test_a_pose_in_two_groups_is_refused(folder):
    rewrite(folder, lambda text: text + "Akarna_Dhanurasana/9.jpg,2,8,0\n", "test")
    with pytest.raises(UserError, match="another line another hierarchy"):
        open_source(f"yoga82:{folder}")


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_images_at_all(folder, split):
    rewrite(folder, lambda text: text.replace(".jpg", ".gone"), split)
    with pytest.raises(UserError, match=r"none of the .* images of yoga_.*gone: download them"):
        open_evaluation(f"yoga82:{folder}")


def test_lists_that_are_not_there_or_no_lists(folder, tmp_path):
    with pytest.raises(UserError, match="as yoga82:DIR"):
        open_source("yoga82")
    with pytest.raises(UserError, match="does not exist: give the folder"):
        open_source(f"yoga82:{tmp_path / 'nowhere'}")
    (folder / "yoga_test.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"yoga_test\.txt is empty"):
        open_source(f"yoga82:{folder}")
    (folder / "yoga_test.txt").write_bytes(b"\xff\xfe" * 9)
    with pytest.raises(UserError, match="byte 0 is not UTF-8"):
        open_source(f"yoga82:{folder}")
    (folder / "yoga_test.txt").unlink()
    (folder / "yoga_test.txt").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        open_source(f"yoga82:{folder}")


def test_a_list_too_large_is_refused(folder, monkeypatch):
    monkeypatch.setattr("misplace.engine.data.yoga82.MAX_LIST_BYTES", 100)
    with pytest.raises(UserError, match="not a list of YOGA-82"):
        open_source(f"yoga82:{folder}")
