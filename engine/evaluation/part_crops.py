"""Parts as pictures: which parts of which images, and the square window of each at an encoder's size."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from misplace.engine.data import Part, PartImages
from misplace.engine.data.decode import DecodeError, decode, open_sample
from misplace.engine.data.image_ops import crop_resize
from misplace.engine.errors import UserError

from .study import Split

IMAGES_AT_ONCE = 64
MAX_THREADS = 8

log = logging.getLogger("misplace.data")


class PartTable(NamedTuple):
    """Visible parts of a split's images, image by image."""

    source: PartImages
    images: Tensor  # int64 [n], numbers of the source
    parts: tuple[Part, ...]  # n of them


def choose_parts(
    split: Split, limit: int, *, per_image: int, classes: tuple[str, ...] = (), seed: int = 0
) -> PartTable:
    """At most `per_image` visible parts of each image, drawn at random, image after image until there are `limit`.

    [O] Few parts of many images tell more than all parts of few. classes: names of the part classes to take, () all.
    UserError where the source has no parts, an unknown class is asked for, or fewer than two classes are found.
    """
    source = part_source(split)
    wanted = {source.part_classes.index(name) for name in check_classes(source, classes)}
    generator = torch.Generator().manual_seed(seed)
    images, chosen = [], []
    for image in split.indices.tolist():
        if len(chosen) >= limit:
            break
        visible = [part for part in source.parts(image) if part.visible and part.part_class in wanted]
        order = torch.randperm(len(visible), generator=generator)[: min(per_image, limit - len(chosen))]
        chosen += [visible[i] for i in order.tolist()]
        images += [image] * len(order)
    if len({part.part_class for part in chosen}) < 2:
        raise UserError(
            f"{source.name}: {len(chosen)} visible parts of {len({p.part_class for p in chosen})} classes in"
            f" {len(split.indices)} {split.name} images; two classes are needed (--num-{split.name}, --parts.classes)"
        )
    return PartTable(source, torch.tensor(images), tuple(chosen))


def part_source(split: Split) -> PartImages:
    """The split's source; UserError where it does not say where parts are."""
    if isinstance(split.source, PartImages):
        return split.source
    raise UserError(
        f"{split.source.name} does not say where parts are: give --data poses, cub:DIR or coco-keypoints:DIR"
    )


def check_classes(source: PartImages, classes: tuple[str, ...]) -> tuple[str, ...]:
    """`classes`, or all where there are none. UserError for a name that is no part class."""
    for name in classes:
        if name not in source.part_classes:
            raise UserError(f"--parts.classes {name!r}: {source.name} has {', '.join(source.part_classes)}")
    return classes or source.part_classes


def load_parts(table: PartTable, image_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Crops uint8 [b, S, S, C] and the rows int64 [b] of the table that they show, in order.

    Parts of a picture that cannot be decoded, and those whose middle lies outside it, are left out, each named in a
    warning of the logger `misplace.data`.
    """
    pictures, counts = torch.unique_consecutive(table.images, return_counts=True)
    rows = torch.arange(len(table.images)).split(counts.tolist())
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:  # Pillow releases the GIL
        for start in range(0, len(pictures), IMAGES_AT_ONCE):
            block = slice(start, start + IMAGES_AT_ONCE)
            made = pool.map(lambda i, r: _crops(table, i, r, image_size), pictures[block].tolist(), rows[block])
            kept = [crop for crops in made for crop in crops]
            if kept:
                shown = np.stack([crop for _, crop in kept])
                yield torch.from_numpy(shown), torch.tensor([row for row, _ in kept])


def _crops(table: PartTable, image: int, rows: Tensor, size: int) -> list[tuple[int, np.ndarray]]:
    path = table.source.path_of(image)
    try:
        picture = decode(open_sample(table.source, image), table.source.channels)
    except DecodeError as error:
        log.warning("left out of the evaluation: %s (%s)", path, error)
        return []
    crops = []
    for row in rows.tolist():
        box = window(table.parts[row], *picture.size)
        if box is None:
            log.warning("left out of the evaluation: a part of %s lies outside the picture", path)
        else:
            crops.append((row, crop_resize(picture, box, size)))
    return crops


def window(part: Part, width: int, height: int) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of the part's square, fractional pixels; None where its middle is not in the picture.

    [O] A square that reaches over the border is moved inside, and one larger than the picture is its shorter side.
    """
    if not (0 <= part.x <= width and 0 <= part.y <= height):
        return None
    side = min(max(part.side, 1.0), width, height)
    left = min(max(part.x - side / 2, 0.0), width - side)
    top = min(max(part.y - side / 2, 0.0), height - side)
    return left, top, left + side, top + side
