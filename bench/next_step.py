"""Training steps as the trainer takes them, on batches that come round again."""

import itertools
from collections.abc import Callable, Sequence

import torch

from misplace.engine.config import Config
from misplace.engine.data import Batch
from misplace.engine.method import Method
from misplace.engine.optim import AdamWEMA
from misplace.engine.step import StepResult, training_step
from misplace.engine.step_queue import StepQueue

PROGRESS = 0.5  # of the run: the learning rate and the momentum of its middle


def next_step(
    method: Method, optimizer: AdamWEMA, config: Config, batches: Sequence[Batch], *, captured: bool
) -> Callable[[], StepResult | None]:
    """Each call trains on the next of `batches`, which lie on the host.

    On the CPU it returns the step's result. On a GPU it returns nothing and waits for nothing: the step is
    launched, copy of the batch included, before whatever the current stream is given next. captured: there, as a
    CUDA graph.
    """
    around = itertools.cycle(batches)
    progress = {"progress": PROGRESS, "next_progress": lambda: PROGRESS}
    if torch.device(config.run.device).type == "cpu":
        return lambda: training_step(method, optimizer, next(around), config, **progress)
    queue = StepQueue(method, optimizer, config, captured=captured)

    def launch() -> None:
        queue.launch(next(around), 0, **progress)
        queue.join()

    return launch
