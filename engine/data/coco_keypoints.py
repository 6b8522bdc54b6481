"""COCO 2017 person keypoints: 17 points of every person, in the layout of the published archives [S].

FOLDER/annotations/person_keypoints_{train,val}2017.json beside FOLDER/{train,val}2017/*.jpg.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from misplace.engine.errors import UserError

from .annotation_files import FARTHEST, below, check_file
from .image_folder import PackedNames, read_picture
from .parts import Part

YEAR_SPLIT = {"train": "train2017", "test": "val2017"}
MAX_BYTES = 1 << 30
PART_SHARE = 0.2  # [O] side of a part's square / longer side of the person's box
VISIBLE = 2  # v of a keypoint: 0 not labelled, 1 labelled but hidden, 2 visible [S]


class Person(NamedTuple):
    """One annotation: keypoints float [K, 3] of (x, y, v); side of a part's square, pixels."""

    image: int
    keypoints: list[list[float]]
    side: float


class CocoKeypoints:
    """The pictures of one split that show a visible keypoint; there is but one class, so no labels.

    Crowds, people without a visible keypoint and people whose box is empty are left out [O]. Every number is
    checked before the first picture is read. Raises UserError in one line, which names the annotation.
    """

    name = "coco-keypoints"
    channels = 3
    image_size, patch_size = 224, 16
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's [S]
    class_names: tuple[str, ...] = ()
    has_masks = False

    def __init__(self, root: str | Path, split: str = "train"):
        root, folder = Path(root).expanduser(), YEAR_SPLIT[split]
        self.root = root / folder
        self._file = root / "annotations" / f"person_keypoints_{folder}.json"
        content = _load(self._file)
        category, self.part_classes = self._category(content)
        names = {number: name for number, name in map(self._picture, _list(self._file, content, "images"))}
        entries = enumerate(_list(self._file, content, "annotations"))
        people = [person for n, entry in entries if (person := self._person(n, entry, category, names))]
        if not people:
            raise UserError(f"{self._file} has no visible keypoints")
        people.sort(key=lambda person: person.image)
        images, starts = np.unique([person.image for person in people], return_index=True)
        self._names = PackedNames(names[image] for image in images.tolist())
        self._starts = [*starts.tolist(), len(people)]
        self._keypoints = np.array([person.keypoints for person in people], dtype=np.float32)
        self._sides = np.array([person.side for person in people], dtype=np.float32)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The encoded file. Raises OSError."""
        return read_picture(Path(self.path_of(index)))

    def path_of(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self._names[index])

    def label(self, index: int) -> int:
        """-1: people are the only class."""
        return -1

    def parts(self, index: int) -> tuple[Part, ...]:
        """The keypoints of everyone in the picture; x and y of one that is not labelled say nothing."""
        people = range(self._starts[index], self._starts[index + 1])
        return tuple(
            Part(part, x, y, float(self._sides[person]), v == VISIBLE)
            for person in people
            for part, (x, y, v) in enumerate(self._keypoints[person].tolist())
        )

    def part_mask(self, index: int) -> None:
        """There are none of single parts."""
        return None

    def _category(self, content: dict) -> tuple[int, tuple[str, ...]]:
        """The number of the category that has keypoints, and their names."""
        found = [c for c in _list(self._file, content, "categories") if isinstance(c, dict) and c.get("keypoints")]
        if len(found) != 1:
            raise UserError(f"{self._file} has {len(found)} categories with keypoints, 1 is needed")
        names = found[0]["keypoints"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{self._file}: the keypoints of its category are not names")
        return _whole(found[0].get("id"), f"{self._file}, category"), tuple(names)

    def _picture(self, entry: Any) -> tuple[int, str]:
        where = f"{self._file}, an entry of images"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is not an object")
        number, name = _whole(entry.get("id"), where), entry.get("file_name")
        if not isinstance(name, str) or not below(name):
            raise UserError(f"{where} (id {number}): file_name is not the name of a file below {self.root}")
        return number, name

    def _person(self, position: int, entry: Any, category: int, names: dict[int, str]) -> Person | None:
        """None for what is left out."""
        where = f"{self._file}, annotation {position}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is not an object")
        if entry.get("category_id") != category or entry.get("iscrowd"):
            return None
        image = _whole(entry.get("image_id"), f"{where}: image_id")
        if image not in names:
            raise UserError(f"{where}: image {image} is not among the images")
        flat = _numbers(entry.get("keypoints"), 3 * len(self.part_classes), f"{where}: keypoints")
        keypoints = [flat[i : i + 3] for i in range(0, len(flat), 3)]
        if any(v not in (0, 1, VISIBLE) for _, _, v in keypoints):
            raise UserError(f"{where}: the visibility of a keypoint is not 0, 1 or 2")
        width, height = _numbers(entry.get("bbox"), 4, f"{where}: bbox")[2:]
        if min(width, height) <= 0 or all(v != VISIBLE for _, _, v in keypoints):
            return None
        return Person(image, keypoints, PART_SHARE * max(width, height))


def _load(file: Path) -> dict:
    """The JSON of an annotation file: UserError where it is no object of it."""
    check_file(file, MAX_BYTES, "COCO 2017")
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file} is not JSON that can be read") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content


def _list(file: Path, content: dict, key: str) -> list:
    if not isinstance(content.get(key), list):
        raise UserError(f"{file} has no list of {key}")
    return content[key]


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise UserError(f"{where}: {str(value)[:40]!r} is not the number of an entry")
    return value


def _numbers(value: Any, count: int, where: str) -> list[float]:
    """UserError where these are not `count` finite numbers that lie near a picture."""
    if not isinstance(value, list) or len(value) != count:
        raise UserError(f"{where}: not a list of {count} numbers")
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) <= FARTHEST for v in value):
        raise UserError(f"{where}: has a value that is not a number of pixels")
    return [float(v) for v in value]
