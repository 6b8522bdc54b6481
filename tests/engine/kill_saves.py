"""Script for test_checkpoint: kills a save at every kill point and checks what is left. Prints JSON.

usage: kill_saves.py EMPTY_FOLDER. One thread, so that forking is safe.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import kill_points
import torch

from misplace.engine import checkpoint

STEP = 20  # of the save that is killed


def content(seed: int) -> tuple[dict[str, torch.Tensor], dict]:
    values = torch.arange(500, dtype=torch.float32) * 0.37 + seed
    tensors = {"weight": values, "half": values.bfloat16(), "step": torch.tensor(seed)}
    return tensors, {"epoch": seed, "seconds": seed / 7, "order": [seed, None, "text"]}


def save(folder: Path, step: int, seed: int, keep: int = 2) -> None:
    checkpoint.save(folder, step, *content(seed), keep=keep)


def holds(path: Path, step: int, seed: int) -> bool:
    """Whether the checkpoint is, to the bit, the one that `save(folder, step, seed)` makes."""
    read = checkpoint.load(path)
    tensors, state = content(seed)
    same = all(torch.equal(read.tensors[name].view(-1), tensors[name].view(-1)) for name in tensors)
    types = all(read.tensors[name].dtype == tensors[name].dtype for name in tensors)
    return read.step == step and read.state == state and set(read.tensors) == set(tensors) and same and types


def first_save(folder: Path) -> None:
    """Nothing is there: a killed save may leave nothing."""


def next_save(folder: Path) -> None:
    for step in (5, 10):
        save(folder, step, step)


def same_step(folder: Path) -> None:
    save(folder, STEP, 10)


def after_killed_save(folder: Path) -> None:
    """What three kills left: a torn save, a half-deleted checkpoint, a swap cut in two."""
    save(folder, STEP, 10)
    shutil.copytree(folder / f"step-{STEP:08d}", folder / ".tmp-step-00000015")
    (folder / ".tmp-step-00000015" / "manifest.json").unlink()
    shutil.copytree(folder / ".tmp-step-00000015", folder / ".old-step-00000005")
    os.rename(folder / f"step-{STEP:08d}", folder / f".swap-step-{STEP:08d}")


def survives(folder: Path, old: tuple[int, int] | None) -> str | None:
    """None when the old or the new checkpoint is whole after the kill, and a later save works."""
    for seen in folder.glob("step-*"):
        checkpoint.load(seen)
    path = checkpoint.latest(folder)
    if path is None:
        if old is not None:
            return "the old checkpoint is lost"
    elif not (holds(path, STEP, 20) or (old is not None and holds(path, *old))):
        return f"{path.name} is neither the old nor the new checkpoint"
    save(folder, 30, 30)
    if not holds(checkpoint.latest(folder), 30, 30):
        return "the save after the kill is not the latest"
    names = sorted(entry.name for entry in folder.iterdir())
    if len(names) > 2 or not all(name.startswith("step-") for name in names):
        return f"not cleaned up: {names}"
    return None


def kill_everywhere(base: Path, old: tuple[int, int] | None) -> dict:
    kills, problems = 0, []
    while True:
        folder = base.with_name("killed")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        child = os.fork()
        if child == 0:
            kill_points.install(kills + 1)
            save(folder, STEP, 20)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            whole = os.WEXITSTATUS(status) == 0 and holds(checkpoint.latest(folder), STEP, 20)
            return {"kills": kills, "problems": problems if whole else [*problems, "the last save failed"]}
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
        if problem := survives(folder, old):
            problems.append(f"kill {kills}: {problem}")


def main(root: Path) -> None:
    torch.set_num_threads(1)
    scenarios = {first_save: None, next_save: (10, 10), same_step: (STEP, 10), after_killed_save: (STEP, 10)}
    results = {}
    for prepare, old in scenarios.items():
        base = root / prepare.__name__ / "checkpoints"
        base.mkdir(parents=True)
        prepare(base)
        results[prepare.__name__] = kill_everywhere(base, old)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
