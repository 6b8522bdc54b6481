"""CUB-200-2011: 11,788 birds of 200 species with 15 parts, in the layout of its archive CUB_200_2011.tgz [S]."""

from pathlib import Path

import numpy as np

from misplace.engine.errors import UserError

from .annotation_files import Line, read_lines
from .image_folder import PackedNames, read_picture
from .parts import Part

TRAINING_FLAG = {"train": 1, "test": 0}
PART_SHARE = 0.25  # [O] side of a part's square / longer side of the bird's box
MOST = 10_000_000  # images or classes: beyond it a number is a mistake


class Cub:
    """One split, as train_test_split.txt says it; the class is the species. Raises UserError in one line.

    root: the folder that holds images.txt and images/, or the one above it. All of the text files are read and
    checked before the first image. A part without a line in part_locs.txt is not visible.
    """

    name = "cub"
    channels = 3
    image_size, patch_size = 224, 16
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's [S]
    has_masks = False

    def __init__(self, root: str | Path, split: str = "train"):
        root = Path(root).expanduser()
        inner = root / "CUB_200_2011"
        self.root = inner if (inner / "images.txt").is_file() else root
        names = {line.whole(0, 0, MOST): line.file_name(1) for line in self._unique("images.txt", 2)}
        classes = {line.whole(0, 0, MOST): line.words[1] for line in self._unique("classes.txt", 2)}
        parts = {line.whole(0, 0, MOST): line.words[1] for line in self._unique("parts/parts.txt", 2)}
        self.class_names, self.part_classes = tuple(classes.values()), tuple(parts.values())
        self._rows = {image: row for row, image in enumerate(names)}
        chosen = self._column("train_test_split.txt", 2)[:, 0] == TRAINING_FLAG[split]
        if not chosen.any():
            raise UserError(f"{self.root / 'train_test_split.txt'} has no {split} images")
        boxes = self._column("bounding_boxes.txt", 5)
        self._names = PackedNames(name for name, wanted in zip(names.values(), chosen) if wanted)
        self._labels = self._classes_of(classes)[chosen]
        self._sides = (PART_SHARE * boxes[:, 2:].max(1))[chosen]
        self._places = self._read_places(parts)[chosen]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The encoded file. Raises OSError."""
        return read_picture(Path(self.path_of(index)))

    def path_of(self, index: int) -> str:
        """The file's path."""
        return str(self.root / "images" / self._names[index])

    def label(self, index: int) -> int:
        """The species."""
        return int(self._labels[index])

    def parts(self, index: int) -> tuple[Part, ...]:
        """The 15 parts; x and y of one that is not visible say nothing."""
        side = float(self._sides[index])
        places = enumerate(self._places[index].tolist())
        return tuple(Part(part, x, y, side, visible == 1) for part, (x, y, visible) in places)

    def part_mask(self, index: int) -> None:
        """There are none: the segmentations published beside the set show whole birds."""
        return None

    def _unique(self, file: str, words: int) -> list[Line]:
        """The lines of a file whose first word is a number that no other line has."""
        lines = list(read_lines(self.root / file, words, "CUB-200-2011"))
        seen: set[int] = set()
        for line in lines:
            number = line.whole(0, 0, MOST)
            if number in seen:
                raise line.wrong(f"number {number} is there twice")
            seen.add(number)
        if not lines:
            raise UserError(f"{self.root / file} is empty")
        return lines

    def _row(self, line: Line) -> int:
        image = line.whole(0, 0, MOST)
        if image not in self._rows:
            raise line.wrong(f"image {image} is not in images.txt")
        return self._rows[image]

    def _column(self, file: str, words: int) -> np.ndarray:
        """float64 [images, words - 1]: one line per image; a box has an extent, and every other number is whole."""
        values = np.full((len(self._rows), words - 1), np.nan)
        for line in self._unique(file, words):
            row = self._row(line)
            values[row] = [line.pixels(i) for i in range(1, words)]
            if words == 5 and values[row, 2:].min() <= 0:
                raise line.wrong("the box is empty")
            if words == 2:
                line.whole(1, 0, MOST)
        if np.isnan(values).any():
            missing = list(self._rows)[int(np.isnan(values).any(1).argmax())]
            raise UserError(f"{self.root / file} has no line for image {missing} of images.txt")
        return values

    def _classes_of(self, classes: dict[int, str]) -> np.ndarray:
        """int64 [images]: a position in class_names."""
        positions = {number: position for position, number in enumerate(classes)}
        labels = np.full(len(self._rows), -1)
        for line in self._unique("image_class_labels.txt", 2):
            number = line.whole(1, 0, MOST)
            if number not in positions:
                raise line.wrong(f"class {number} is not in classes.txt")
            labels[self._row(line)] = positions[number]
        if labels.min() < 0:
            missing = list(self._rows)[int(labels.argmin())]
            raise UserError(f"{self.root / 'image_class_labels.txt'} has no line for image {missing} of images.txt")
        return labels

    def _read_places(self, parts: dict[int, str]) -> np.ndarray:
        """float32 [images, parts, 3]: x, y, 1 where visible."""
        positions = {number: position for position, number in enumerate(parts)}
        places = np.zeros((len(self._rows), len(parts), 3), dtype=np.float32)
        for line in read_lines(self.root / "parts" / "part_locs.txt", 5, "CUB-200-2011"):
            part = line.whole(1, 0, MOST)
            if part not in positions:
                raise line.wrong(f"part {part} is not in parts.txt")
            place = line.pixels(2), line.pixels(3), line.whole(4, 0, 1)
            places[self._row(line), positions[part]] = place
        return places
