"""What the writer puts into a shard for one sample: image, label and metadata, by extension."""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from misplace.engine.errors import UserError

from ..image_folder import EXTENSIONS


def sample_files(source, index: int) -> dict[str, bytes]:
    """Extension -> content. source: a Source. Raises UserError for an image that cannot be read.

    Encoded images go in as they are, damaged ones too; raw pixels as PNG. The metadata are the image's name in the
    source, its class's name, and its annotation where the source has one.
    """
    path = source.path_of(index)
    try:
        data = source.read(index)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; `misplace data verify` names every bad image"
        ) from None
    if isinstance(data, np.ndarray):
        data = _png(data)
    metadata: dict = {"file": _relative(path, getattr(source, "root", None))}
    files = {_extension(data, path): data}
    if (label := source.label(index)) >= 0:
        files["cls"] = str(label).encode()
        metadata["class_name"] = source.class_names[label]
    if hasattr(source, "annotation"):
        metadata["annotation"] = dataclasses.asdict(source.annotation(index))
    files["json"] = json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()
    return files


def _extension(data: bytes, path: str) -> str:
    """By the content; by the name where the content is no image at all."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"BM"):
        return "bmp"
    suffix = Path(path).suffix.lower()
    return suffix[1:] if suffix in EXTENSIONS else "jpg"


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _relative(path: str, root: str | Path | None) -> str:
    """Below the source's folder, never an absolute name."""
    inside = os.path.relpath(path, root) if root is not None else ""
    return os.path.basename(path) if not inside or inside.startswith("..") else inside
