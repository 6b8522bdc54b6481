"""Tiny comparisons on a clock that steps alone move, so that nothing depends on the machine; also a script.

usage: compare_runs.py IMAGES OUT KILL_AT: runs one and kills itself at that durable write of a slice (0: never).
"""

import functools
import os
import signal
import sys
from pathlib import Path

import torch
from runs import tiny_config

from misplace.engine import trainer
from misplace.engine.clock import TrainingClock
from misplace.engine.comparison import Variant, compare, make_plan
from misplace.engine.comparison.folder import Journal

BUDGET, SLICE = 12.0, 3.0


class Clock:
    """Seconds that pass only while a step is taken."""

    def __init__(self, cost):
        """cost: config -> seconds of a step."""
        self.now, self.cost, self.real = 0.0, cost, trainer.training_step

    def __call__(self) -> float:
        return self.now

    def step(self, method, optimizer, batch, config, **options):
        result = self.real(method, optimizer, batch, config, **options)
        self.now += self.cost(config)
        return result


def use(clock: Clock, patch=setattr) -> None:
    """patch: monkeypatch.setattr, or setattr in a process of its own."""
    patch(trainer, "training_step", clock.step)
    patch(trainer, "TrainingClock", functools.partial(TrainingClock, now=clock))


def variants(images: Path, names=("moco_v3", "moco_v3_dilemma"), **run) -> list[Variant]:
    return [Variant(name, tiny_config(name, images, None, **run)) for name in names]


def compare_tiny(images: Path, out: Path, *, seeds: int = 1, budget: float = BUDGET, names=None, **options) -> bool:
    chosen = variants(images, names) if names else variants(images)
    plan, source = make_plan(chosen, seeds=seeds, budget=budget, slice_seconds=SLICE)
    return compare(plan, source, out, **options)


def kill_at(writes: int) -> None:
    """SIGKILL in place of the durable line of that slice: its checkpoint is there, its line is not."""
    real, seen = Journal.add, 0

    def add(self, entry):
        nonlocal seen
        seen += 1
        if seen == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, entry)

    Journal.add = add


if __name__ == "__main__":
    torch.set_num_threads(1)
    use(Clock(lambda config: 1.0 if config.recipe == "moco_v3" else 0.5))
    kill_at(int(sys.argv[3]))
    compare_tiny(Path(sys.argv[1]), Path(sys.argv[2]), seeds=2)
