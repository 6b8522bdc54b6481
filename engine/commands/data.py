"""misplace data render DIR | verify SOURCE | shard SOURCE DIR"""

import os
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from tyro.conf import Positional

from ..errors import UserError
from .parsing import parse


@dataclass(frozen=True)
class Render:
    """Render the `poses` dataset: JPEGs, part masks, part centres and the pose hierarchy."""

    dir: Positional[Path | None] = None
    """Where; none: where `--data poses` looks for it."""
    train: int | None = None
    """Training images; none: the default's number."""
    test: int | None = None
    """Test images; none: the default's number."""
    size: int | None = None
    """Side of an image, pixels; none: the default's."""
    seed: int | None = None
    """Same seed, same bytes."""
    workers: int | None = None
    """Processes; none: one per core."""


@dataclass(frozen=True)
class Verify:
    """Decode every image of a source and name those that cannot be used; exit code 1 when there are any."""

    source: Positional[str]
    """An image folder, tar shards, `fashion-mnist` or `poses`."""
    workers: int | None = None
    """Decoding threads; none: one per core."""


@dataclass(frozen=True)
class Shard:
    """Write a source as tar shards in WebDataset form, with their indices."""

    source: Positional[str]
    """An image folder, `fashion-mnist` or `poses`."""
    dir: Positional[Path]
    """A folder that is new or empty."""
    shard_mb: int = 256
    """Size of a shard, MiB."""


def render(argv: list[str]) -> int:
    """Render with a progress bar."""
    from ..data.poses import default_root, render_dataset

    options = parse(Render, argv, prog="misplace data render")
    given = {k: v for k, v in vars(options).items() if k != "dir" and v is not None}
    if options.dir is None and given.keys() - {"workers"}:
        raise UserError("misplace data render: another number, size or seed needs a folder of its own; give DIR")
    with Progress() as bar:
        task = bar.add_task("rendering poses", total=None)
        root = render_dataset(
            options.dir or default_root(),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **given,
        )
    print(f"poses: {root}")
    return 0


def verify(argv: list[str]) -> int:
    """Verify with a progress bar; one line per bad file, then the counts."""
    from ..data import verify as verify_source

    options = parse(Verify, argv, prog="misplace data verify")
    with Progress() as bar:
        task = bar.add_task("decoding", total=None)
        found = verify_source(
            options.source,
            workers=options.workers or os.cpu_count() or 1,
            progress=lambda done, total, failed: bar.update(
                task, completed=done, total=total, description=f"decoding, {failed} bad"
            ),
        )
    for failure in found.failures:
        print(f"{failure.path}: {failure.reason}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.most_common())
    print(f"{found.num_images} images, {len(found.failures)} bad" + (f" ({kinds})" if kinds else ""))
    return 1 if found.failures else 0


def shard(argv: list[str]) -> int:
    """Write shards with a progress bar."""
    from ..data.shards.writer import write_shards

    options = parse(Shard, argv, prog="misplace data shard")
    with Progress() as bar:
        task = bar.add_task("writing shards", total=None)
        root = write_shards(
            options.source,
            options.dir,
            shard_bytes=options.shard_mb << 20,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(f"shards: {root}")
    return 0


ACTIONS = {"render": render, "verify": verify, "shard": shard}


def main(argv: list[str]) -> int:
    """Run one of ACTIONS."""
    if argv and argv[0] in ACTIONS:
        return ACTIONS[argv[0]](argv[1:])
    if argv and argv[0] in ("-h", "--help"):
        print(f"{__doc__}; each prints --help")
        return 0
    given = repr(argv[0]) if argv else "nothing"
    raise UserError(f"misplace data: {given} is not one of {', '.join(ACTIONS)}")
