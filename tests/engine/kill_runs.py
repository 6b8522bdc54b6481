"""Script for test_resume: kills training runs at random steps and in every phase of a save, and resumes them.

usage: kill_runs.py SCRATCH_FOLDER KILLS PIPELINE RECIPE. One thread, so that forking is safe. Prints JSON: kills,
kills by place, runs lost, and how many bits of the final state differ from the uninterrupted run's.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import kill_points
import torch
import torch.utils.tensorboard
from runs import striped_images, tiny_config

from misplace.engine import trainer
from misplace.engine.checkpoint import latest, load

STEPS, KILLS_PER_RUN = 10, 5
PIPELINE, RECIPE = sys.argv[3:5]


def pretrain(folder: Path, images: Path, *, resume: bool) -> None:
    run = {"steps": STEPS, "checkpoint_steps": 3, "keep": 2, "resume": resume}
    trainer.pretrain(tiny_config(RECIPE, images, folder, pipeline=PIPELINE, **run))


def in_child(action) -> int:
    """Runs `action` in a forked process with its output thrown away; returns the wait status."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        try:
            action()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitpid(child, 0)[1]


def kill_in_step(calls: int, inside: str) -> None:
    """Kill when the losses are there but nothing is updated, or when everything is updated but not counted."""
    real, seen = trainer.training_step, 0

    def patched(*args, **options):
        nonlocal seen
        seen += 1
        if seen == calls and inside == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        if seen == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    trainer.training_step = patched


def killed_once(folder: Path, images: Path, dice: random.Random, points: int) -> str | None:
    """One process that is killed somewhere; returns where, None when it came through."""
    resume = folder.exists()
    if dice.random() < 0.5:
        calls, inside = dice.randint(1, 4), dice.choice(["before", "after"])
        place, prepare = f"{inside} step", lambda: kill_in_step(calls, inside)
    else:
        point = dice.randint(1, points)
        place, prepare = "file system call", lambda: kill_points.install(point)

    def action():
        prepare()
        pretrain(folder, images, resume=resume)

    status = in_child(action)
    if os.WIFSIGNALED(status):
        return place
    assert os.WEXITSTATUS(status) == 0, f"a resumed run failed after a kill ({place})"
    return None


def differing_bits(folder: Path, expected: dict[str, torch.Tensor]) -> int:
    """Bits that differ between a run's last checkpoint and the uninterrupted one."""
    checkpoint = load(latest(folder / "checkpoints"))
    assert checkpoint.step == STEPS and checkpoint.tensors.keys() == expected.keys()
    differing = 0
    for name, tensor in expected.items():
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, checkpoint.tensors[name]))
        differing += int((a ^ b).count_nonzero())
    return differing


def main(scratch: Path, kills: int) -> None:
    torch.set_num_threads(1)
    images = striped_images(scratch / "images")
    points = 0

    def uninterrupted():
        nonlocal points
        points = kill_points.count(lambda: pretrain(scratch / "whole", images, resume=False))
        (scratch / "points").write_text(str(points))

    assert in_child(uninterrupted) == 0
    points = int((scratch / "points").read_text())
    expected = load(latest(scratch / "whole" / "checkpoints")).tensors
    dice, report = random.Random(0), {"kills": 0, "places": {}, "lost": 0, "differing_bits": 0, "runs": 0}
    while report["kills"] < kills:
        folder = scratch / f"run-{report['runs']}"
        for _ in range(KILLS_PER_RUN):
            if place := killed_once(folder, images, dice, points):
                report["kills"] += 1
                report["places"][place] = report["places"].get(place, 0) + 1
        status = in_child(lambda folder=folder: pretrain(folder, images, resume=folder.exists()))
        report["lost"] += status != 0
        report["differing_bits"] += differing_bits(folder, expected) if status == 0 else 0
        report["runs"] += 1
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
