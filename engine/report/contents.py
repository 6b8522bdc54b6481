"""What a run folder holds, as far as it is there and can be read."""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from misplace.engine.errors import UserError


class Pictures(NamedTuple):
    """Some samples as the student saw them; probability (of "misplaced") is None without a detection head."""

    views: np.ndarray  # uint8 [n, V, S, S, C]
    src: np.ndarray  # int32 [n, V, K]
    pos: np.ndarray  # int32 [n, V, K]
    wrong: np.ndarray  # bool [n, V, K]
    probability: np.ndarray | None  # float32 [n, V, K]
    patch_size: int
    reconstruction: np.ndarray | None = None  # uint8, as views: dropped patches as a decoder has them


@dataclass
class RunContents:
    """What was read of a run. unread: one line per file that is there but cannot be read."""

    path: Path
    config: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    metrics: list[dict] = field(default_factory=list)
    pictures: Pictures | None = None
    quarantined: int = 0
    unread: list[str] = field(default_factory=list)


def read_run(path: Path) -> RunContents:
    """Everything the report shows; a missing file is an empty part. UserError where there is no folder."""
    if not path.is_dir():
        raise UserError(f"report: {path} is not a run folder; give the folder that pretrain wrote")
    run = RunContents(path)
    run.config = _read_object(run, "config.json")
    run.environment = _read_object(run, "environment.json")
    run.summary = _read_object(run, "summary.json")
    run.metrics = [line for line in _read_lines(run, "metrics.jsonl") if isinstance(line.get("step"), int)]
    run.quarantined = len(_read_lines(run, "quarantine.jsonl"))
    run.pictures = _read_pictures(run, "pictures.npz")
    return run


def _read_object(run: RunContents, name: str) -> dict:
    file = run.path / name
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        run.unread.append(f"{name}: {error}")
        return {}
    if not isinstance(content, dict):
        run.unread.append(f"{name}: not a JSON object")
        return {}
    return content


def _read_lines(run: RunContents, name: str) -> list[dict]:
    """The JSON objects of a .jsonl file; a killed run may leave half a line at its end."""
    file = run.path / name
    if not file.is_file():
        return []
    objects, bad = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            bad += 1
            continue
        if isinstance(value, dict):
            objects.append(value)
    if bad:
        run.unread.append(f"{name}: {bad} unreadable line{'s' if bad > 1 else ''} left out")
    return objects


def _read_pictures(run: RunContents, name: str) -> Pictures | None:
    file = run.path / name
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as held:
            pictures = Pictures(
                views=held["views"],
                src=held["src"],
                pos=held["pos"],
                wrong=held["wrong"].astype(bool),
                probability=held.get("probability"),
                patch_size=int(held["patch_size"]),
                reconstruction=held.get("reconstruction"),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        run.unread.append(f"{name}: {error}")
        return None
    if reason := _misfit(pictures):
        run.unread.append(f"{name}: {reason}")
        return None
    return pictures


def _misfit(pictures: Pictures) -> str | None:
    """Why the arrays do not fit each other; None where they do."""
    views, patch_size = pictures.views, pictures.patch_size
    if views.dtype != np.uint8 or views.ndim != 5 or views.shape[-1] not in (1, 3):
        return f"views is {views.dtype} {views.shape}, not uint8 [n, V, S, S, 1 or 3]"
    side = views.shape[2]
    if views.shape[3] != side or patch_size < 1 or side % patch_size:
        return f"views of {views.shape[2]} x {views.shape[3]} pixels do not divide into patches of {patch_size}"
    arrays = [pictures.src, pictures.pos, pictures.wrong]
    arrays += [] if pictures.probability is None else [pictures.probability]
    if any(a.ndim != 3 or a.shape != pictures.src.shape or a.shape[:2] != views.shape[:2] for a in arrays):
        return "src, pos, wrong and probability do not have one shape [n, V, K]"
    made = pictures.reconstruction
    if made is not None and (made.dtype, made.shape) != (views.dtype, views.shape):
        return f"reconstruction is {made.dtype} {made.shape}, views is {views.dtype} {views.shape}"
    num_patches = (side // patch_size) ** 2
    if pictures.src.min(initial=0) < 0 or pictures.src.max(initial=0) >= num_patches:
        return f"src is outside 0..{num_patches - 1}"
    if pictures.pos.min(initial=0) < -1 or pictures.pos.max(initial=0) >= num_patches:
        return f"pos is outside -1..{num_patches - 1}"
    return None
