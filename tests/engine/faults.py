"""Minor page faults of a training step, before and after freed memory is kept; run by test_cpu_training.py.

FOLDER: of images. Prints two numbers, faults a step.
"""

import json
import resource
import sys
from pathlib import Path

import runs
import torch

from misplace.engine.cpu_training import keep_freed_memory
from misplace.engine.data import make_loader, open_source
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method, build_optimizer
from misplace.engine.step import training_step

STEPS = 2


def stepper(config):
    """A function that takes one step."""
    source = open_source(config.data.source)
    impls = resolve_implementations(torch.device("cpu"), config.run.impl)
    method = build_method(config, source, impls)
    optimizer = build_optimizer(method, config, impls)
    data = config.data
    with make_loader(
        source,
        batch_size=data.batch_size,
        num_views=2,
        image_size=config.model.image_size,
        augment=data.augment,
        seed=0,
    ) as loader:
        batch = next(loader)
    return lambda: training_step(method, optimizer, batch, config, progress=0.5, next_progress=lambda: 0.5)


def faults_of_a_step(step) -> float:
    """In the steady state: after as many steps that are not counted."""
    for _ in range(STEPS):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    step = stepper(runs.large_batch_config(folder, folder / "run"))
    before = faults_of_a_step(step)
    kept = keep_freed_memory()
    print(json.dumps({"kept": kept, "before": before, "after": faults_of_a_step(step)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
