"""Renders the whole set to disk: in parallel, atomically, the same bytes for any number of workers."""

import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from misplace.engine.errors import UserError

from .annotation import MANIFEST, Annotation, annotate, describe, read_manifest, to_line
from .difficulty import DEFAULT, Difficulty
from .render import render_images
from .skeleton import CLASS_NAMES

TRAIN, TEST, SIZE = 8_000, 2_000, 112
JPEG_QUALITY = 90
_CHUNK = 100

Progress = Callable[[int, int], None]


class _Chunk(NamedTuple):
    folder: Path
    split: str
    start: int
    stop: int
    size: int
    seed: int
    difficulty: Difficulty


def render_dataset(
    root: str | Path,
    *,
    train: int = TRAIN,
    test: int = TEST,
    size: int = SIZE,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    difficulty: Difficulty = DEFAULT,
) -> Path:
    """Renders `train` + `test` pictures of `size` x `size` pixels under `root` and returns it.

    Writes {train,test}/<class>/<number>.jpg, masks/..., annotations/{train,test}.jsonl and poses.json.
    The folder appears complete or not at all; where it is there with the same settings, nothing is done.
    workers: processes, by default one per usable core. progress: called with (done, total) pictures.
    Raises UserError for bad settings, and where `root` holds anything else.
    """
    root = Path(root).expanduser().absolute()
    workers = _usable_cores() if workers is None else workers
    _check(train, test, size, seed, workers)
    description = describe({"train": train, "test": test}, size, seed, difficulty)
    if _is_there(root, description):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        _render_all(folder, description, difficulty, workers, progress)
        folder.chmod(0o755)
        _publish(folder, root, description)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return root


def encode(image: np.ndarray, kind: str) -> bytes:
    """JPEG of a picture [H, W, 3] or PNG of a mask [H, W], uint8."""
    buffer = io.BytesIO()
    # Whole chroma: at half of it the hues smear into each other, and their clipping shows in the luma.
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "jpeg" else {"compress_level": 1}
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check(train: int, test: int, size: int, seed: int, workers: int) -> None:
    if train < 0 or test < 0 or train + test == 0:
        raise UserError(f"poses: {train} training and {test} test pictures asked for; ask for at least one")
    if not 32 <= size <= 1024:
        raise UserError(f"poses: size {size} is outside 32 to 1024 pixels; choose one inside")
    if not 0 <= seed < 2**64:
        raise UserError(f"poses: seed {seed} is outside 0 to 2^64 - 1; choose one inside")
    if workers < 1:
        raise UserError(f"poses: {workers} workers; use at least one")


def _is_there(root: Path, description: dict) -> bool:
    if not root.exists():
        return False
    if read_manifest(root) == description:
        return True
    raise UserError(f"poses: {root} exists and holds something else; delete it or name another folder")


def _render_all(
    folder: Path, description: dict, difficulty: Difficulty, workers: int, progress: Progress | None
) -> None:
    counts, size, seed = description["counts"], description["size"], description["seed"]
    (folder / "annotations").mkdir()
    for split in counts:
        for name in CLASS_NAMES:
            (folder / split / name).mkdir(parents=True)
            (folder / "masks" / split / name).mkdir(parents=True)
    chunks = [
        _Chunk(folder, split, start, min(start + _CHUNK, count), size, seed, difficulty)
        for split, count in counts.items()
        for start in range(0, count, _CHUNK)
    ]
    lines: dict[str, list[str]] = {split: [] for split in counts}
    # Closed at once when progress raises, so that no process still writes into a folder that is going away.
    with closing(_results(chunks, workers)) as results:
        for chunk, annotations in zip(chunks, results):
            lines[chunk.split] += map(to_line, annotations)
            if progress:
                progress(sum(map(len, lines.values())), sum(counts.values()))
    for split, content in lines.items():
        (folder / "annotations" / f"{split}.jsonl").write_text("".join(content))
    (folder / MANIFEST).write_text(json.dumps(description, indent=1) + "\n")


def _results(chunks: list[_Chunk], workers: int) -> Iterator[list[Annotation]]:
    """What _render_chunk returns for each chunk, in order."""
    if min(workers, len(chunks)) == 1:
        yield from map(_render_chunk, chunks)
        return
    # spawn: the caller may already have threads or a CUDA context, which a fork would break.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(
            min(workers, len(chunks)), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield from pool.map(_render_chunk, chunks)
    except BrokenProcessPool as error:
        raise UserError(
            "poses: a rendering process ended early; in a script, start from `if __name__ == '__main__':`, "
            "or render with workers=1"
        ) from error


def _render_chunk(chunk: _Chunk) -> list[Annotation]:
    annotations = []
    indices = range(chunk.start, chunk.stop)
    rendered = render_images(indices, seed=chunk.seed, split=chunk.split, size=chunk.size, difficulty=chunk.difficulty)
    for index, picture in zip(indices, rendered):
        annotation = annotate(index, chunk.split, picture)
        (chunk.folder / annotation.file).write_bytes(encode(picture.image, "jpeg"))
        (chunk.folder / annotation.mask).write_bytes(encode(picture.mask, "png"))
        annotations.append(annotation)
    return annotations


def _publish(folder: Path, root: Path, description: dict) -> None:
    try:
        os.rename(folder, root)
    except OSError:
        # Another process was first; its bytes are ours if its description is.
        if not _is_there(root, description):
            raise
