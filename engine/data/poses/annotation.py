"""The words beside a picture: one JSON line per picture, and poses.json for the whole set."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .difficulty import Difficulty
from .render import Rendered
from .skeleton import CLASS_NAMES, HIERARCHY, PART_KINDS, PART_NAMES, POSES

VERSION = 3  # raised whenever the same seed would give other pixels
MANIFEST = "poses.json"


@dataclass(frozen=True)
class Annotation:
    """One picture. Paths are relative to the root; coordinates are pixels (x, y) of the stored picture."""

    file: str
    mask: str  # PNG, 0 background, 1 + i for part i of PART_NAMES
    class_id: int
    hierarchy: tuple[str, ...]  # class names, coarse to fine
    part_centres: tuple[tuple[int, int], ...]  # inside the mask of every part that is visible
    visibility: tuple[float, ...]  # share of the part's pixels that no other part hides


def annotate(index: int, split: str, rendered: Rendered) -> Annotation:
    pose = POSES[rendered.class_id]
    place = f"{split}/{pose.name}/{index:06d}"
    return Annotation(
        file=f"{place}.jpg",
        mask=f"masks/{place}.png",
        class_id=rendered.class_id,
        hierarchy=(pose.group, pose.family, pose.name),
        part_centres=tuple(map(tuple, rendered.part_centres.tolist())),
        visibility=tuple(round(share, 4) for share in rendered.visibility.tolist()),
    )


def to_line(annotation: Annotation) -> str:
    return json.dumps(asdict(annotation), separators=(",", ":")) + "\n"


def from_line(line: str) -> Annotation:
    fields = json.loads(line)
    fields["hierarchy"] = tuple(fields["hierarchy"])
    fields["part_centres"] = tuple(map(tuple, fields["part_centres"]))
    fields["visibility"] = tuple(fields["visibility"])
    return Annotation(**fields)


def describe(counts: dict[str, int], size: int, seed: int, difficulty: Difficulty) -> dict:
    """The content of poses.json: two sets with equal descriptions have equal bytes."""
    content = {
        "version": VERSION,
        "seed": seed,
        "size": size,
        "counts": counts,
        "class_names": CLASS_NAMES,
        "hierarchy": [level._asdict() for level in HIERARCHY],
        "part_names": PART_NAMES,
        "part_kinds": PART_KINDS,
        "difficulty": asdict(difficulty),
    }
    return json.loads(json.dumps(content))


def read_manifest(root: Path) -> dict | None:
    """poses.json, or None where there is none."""
    path = root / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else None
