"""What a step with a non-finite loss or gradient saw, kept so that it can be replayed.

A capture is a folder like a checkpoint's (safetensors, JSON, digests), written in one step and never pruned.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from misplace.engine.checkpoint import CheckpointError, bundle
from misplace.engine.checkpoint.errors import DamagedError
from misplace.engine.durable import sync_folder
from misplace.engine.plain_json import plain

FORMAT = "misplace-capture"


class Capture(NamedTuple):
    batch_views: tuple[Tensor, ...]  # each uint8 [B, H, W, C]
    index: Tensor  # int64 [B], global sample indices
    epoch: int
    plans: tuple[dict[str, Tensor], ...]  # one per view: the fields of its TokenPlan
    tensors: dict[str, Tensor]  # weights and optimiser state before the update
    state: dict[str, Any]
    reason: str


def write_capture(
    folder: Path | str,
    *,
    batch_views: Sequence[Tensor],  # each [B, H, W, C]
    index: Tensor,  # int64 [B]
    epoch: int,
    plans: Sequence[Any],  # TokenPlans, or other named tuples of tensors, or mappings of them
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    reason: str,
) -> Path:
    """Writes FOLDER/capture-0000 (or the next free number) and returns it.

    state: plain values, "step" among them; tuples become lists and non-finite numbers null, so say those in
    `reason`. CheckpointError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    named = {f"tensors.{name}": tensor for name, tensor in tensors.items()}
    named |= {f"views.{i}": view for i, view in enumerate(batch_views)} | {"index": index}
    for i, plan in enumerate(plans):
        fields = plan if isinstance(plan, Mapping) else plan._asdict()
        named |= {f"plans.{i}.{field}": tensor for field, tensor in fields.items()}
    about = {"reason": reason, "epoch": int(epoch), "num_views": len(batch_views), "num_plans": len(plans)}
    files = bundle.encode(named, {**about, "state": plain(state)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _publish(folder, files, int(state["step"]))
    except OSError as error:
        mend = "make room or mend the permissions"
        raise CheckpointError(f"{reason}; {folder}: cannot write the capture: {error.strerror}; {mend}") from None


def _publish(folder: Path, files: Mapping[str, bytes], step: int) -> Path:
    taken = [path.name.removeprefix("capture-") for path in folder.glob("capture-*")]
    number = 1 + max((int(digits) for digits in taken if digits.isdecimal()), default=-1)
    final = folder / f"capture-{number:04d}"
    temporary = folder / f".tmp-{final.name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        bundle.write(temporary, files, format=FORMAT, step=step)
        os.rename(temporary, final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    return final


def read_capture(path: Path | str) -> Capture:
    """Reads what `write_capture` wrote; CheckpointError unless every byte is the one that was written."""
    path = Path(path)
    try:
        _, tensors, about = bundle.read(path, format=FORMAT)
    except DamagedError as error:
        raise CheckpointError(f"{error}; this capture cannot be replayed: remove {path}") from None
    views = tuple(tensors[f"views.{i}"] for i in range(about["num_views"]))
    plans = tuple(_under(f"plans.{i}.", tensors) for i in range(about["num_plans"]))
    kept = _under("tensors.", tensors)
    return Capture(views, tensors["index"], about["epoch"], plans, kept, about["state"], about["reason"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
