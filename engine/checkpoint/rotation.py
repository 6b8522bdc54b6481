"""The checkpoints of a run: FOLDER/step-00000120/, one folder each, the last `keep` of them.

A step-* folder is whole by construction: written under a hidden name, synced, then renamed. Hidden names:

    .tmp-step-N    being written; worthless after a kill
    .swap-step-N   the old checkpoint of step N while a new one of the same step takes its place; it counts as
                   the checkpoint of step N for as long as there is no step-N
    .old-step-N    being deleted; never read

The next save clears up what a killed one left. One process writes (the run folder's lock sees to it); any
number may read.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from misplace.engine.durable import sync_folder

from . import bundle
from .errors import CheckpointError, DamagedError

FORMAT = "misplace-checkpoint"
_NAME = re.compile(r"(\.swap-)?step-(\d{8,})")


class Checkpoint(NamedTuple):
    step: int
    tensors: dict[str, Tensor]  # on the CPU
    state: dict[str, Any]  # plain JSON


def save(
    folder: Path | str,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Writes the checkpoint of `step`, then prunes to the `keep` latest ones; returns its folder.

    Saving a step again replaces it. When this raises CheckpointError (disk full, no permission), or the
    process is killed anywhere inside, the checkpoints that were there before are still whole. Tensors that
    share storage are written apart. Peak extra memory: twice the size of the tensors.
    ValueError / TypeError: `state` is not plain JSON (it must read back equal), or keep < 1.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"keep >= 1 and step >= 0 wanted, got {keep} and {step}")
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-{final.name}"
    files = bundle.encode(tensors, state)
    try:
        _prepare(folder)
        bundle.write(temporary, files, format=FORMAT, step=step)
        _publish(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(_save_failed(folder, step, error)) from None
    try:
        _prune(final, keep)
    except OSError as error:
        reason = f"an older one cannot be removed ({error.strerror})"
        raise CheckpointError(f"saved {final}, but {reason}: mend the permissions of {folder}") from None
    return final


def load(path: Path | str) -> Checkpoint:
    """Reads the checkpoint folder `path`; CheckpointError unless every byte is the one that was written."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint folder")
    try:
        read = bundle.read(path, format=FORMAT)
    except DamagedError as error:
        raise CheckpointError(f"{error}; {_instead_of(path)}") from None
    named = _NAME.fullmatch(path.name)
    if named and int(named[2]) != read.step:
        raise CheckpointError(f"{path}: holds step {read.step}; rename it to step-{read.step:08d}")
    return Checkpoint(*read)


def latest(folder: Path | str) -> Path | None:
    """The checkpoint of the highest step, None when there is none. Looks at names only: `load` verifies."""
    present = _present(Path(folder))
    return present[max(present)] if present else None


def _present(folder: Path) -> dict[int, Path]:
    """Step -> folder of its checkpoint."""
    present = {}
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    for name in sorted(names):  # ".swap-" sorts before "step-", which then takes its place
        if named := _NAME.fullmatch(name):
            present[int(named[2])] = folder / name
    return present


def _prepare(folder: Path) -> None:
    """Creates the folder, or clears up after a save that was killed."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync_folder(folder.parent)
    for swapped in folder.glob(".swap-step-*"):
        final = folder / swapped.name.removeprefix(".swap-")
        if final.exists():
            _discard(swapped)
        else:
            os.rename(swapped, final)
    for pattern in (".tmp-step-*", ".old-step-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover)


def _publish(temporary: Path, final: Path) -> None:
    swapped = final.with_name(f".swap-{final.name}")
    replaces = final.exists()
    if replaces:
        os.rename(final, swapped)
    try:
        os.rename(temporary, final)
    except OSError:
        if replaces:
            os.rename(swapped, final)
        raise
    sync_folder(final.parent)


def _prune(just_saved: Path, keep: int) -> None:
    folder = just_saved.parent
    for swapped in folder.glob(".swap-step-*"):
        _discard(swapped)
    present = _present(folder)
    for step in sorted(present)[:-keep]:
        if present[step] != just_saved:
            _discard(present[step])


def _discard(path: Path) -> None:
    """Deletes a checkpoint; it stops being one before its first file goes."""
    doomed = path.with_name(f".old-{path.name.removeprefix('.swap-')}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _save_failed(folder: Path, step: int, error: OSError) -> str:
    before = latest(folder) if os.access(folder, os.R_OK | os.X_OK) else None
    kept = f"{before.name} is intact" if before else "there is no earlier checkpoint"
    mend = "make room or mend the permissions, then --resume"
    return f"cannot save step {step} in {folder}: {error.strerror}; {kept}: {mend}"


def _instead_of(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    named = _NAME.fullmatch(path.name)
    earlier = [step for step in _present(path.parent) if named and step < int(named[2])]
    if earlier:
        return f"remove {path} to resume from step {max(earlier)}"
    return "no earlier checkpoint is beside it: start again with --overwrite or another --out"
