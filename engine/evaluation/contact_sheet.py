"""One PNG for the eye: some pictures, a row each, under every change, a column each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from misplace.engine.data import Source, load_eval
from misplace.engine.errors import UserError

CELL, GAP, TITLE = 144, 4, 16  # pixels


def write_contact_sheet(path: Path, columns: Sequence[tuple[str, Source]], indices: Tensor, image_size: int) -> None:
    """The pictures `indices` of every source as an encoder of image_size sees them, under the source's title.

    Raises UserError where the file cannot be written; its folder is made.
    """
    sheet = Image.new("RGB", (len(columns) * (CELL + GAP) + GAP, len(indices) * (CELL + GAP) + TITLE + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, source) in enumerate(columns):
        left = GAP + column * (CELL + GAP)
        draw.text((left, 2), title, fill="black")
        images, kept = load_eval(source, indices, image_size)
        for image, index in zip(images.numpy(), kept.tolist()):
            row = indices.tolist().index(index)
            cell = Image.fromarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
            sheet.paste(cell.resize((CELL, CELL), Image.Resampling.BICUBIC), (left, TITLE + GAP + row * (CELL + GAP)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
