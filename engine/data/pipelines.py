"""Which pipeline decodes and augments, and its loader."""

from collections.abc import Collection

import torch

from misplace.engine.errors import UserError

from . import native_views
from .augmentation import AugmentConfig
from .dali import DaliLoader, StepInputsOf, why_unavailable
from .loader import PillowLoader
from .pillow import PillowPipeline
from .sources import Source

CPU = torch.device("cpu")
Loader = PillowLoader | DaliLoader


def choose_pipeline(asked: str) -> str:
    """ "dali" or "pillow": as asked; of "auto" DALI where it is installed. UserError where asked for and missing."""
    missing = why_unavailable()
    if asked == "dali" and missing:
        raise UserError(f"--data.pipeline dali: {missing}, or use --data.pipeline pillow")
    return ("pillow" if missing else "dali") if asked == "auto" else asked


def describe(pipeline: str, workers: int, device: torch.device) -> str:
    """The line that a run begins with. pipeline: as choose_pipeline gave it."""
    if pipeline == "dali":
        native = device.type == "cpu" and native_views.available()
        views = "the native kernel" if native else f"DALI on the {'CPU' if device.type == 'cpu' else 'GPU'}"
        return f"data: DALI, {_count(max(1, workers), 'thread')}, views by {views}"
    missing = why_unavailable()
    return f"data: Pillow, {_count(workers, 'worker')}" + (f" ({missing})" if missing else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def make_loader(
    source: Source,
    *,
    batch_size: int,
    num_views: int,
    image_size: int,
    augment: AugmentConfig,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    worker_cores: Collection[int] | None = None,
    pipeline: str = "pillow",
    device: torch.device = CPU,
    hardware: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """The batches of this source from start_step on: the same, to the bit, for any number of workers.

    batch_size: of all ranks together; num_views: those of image_size, without augment's local ones. workers:
    processes of Pillow, threads of DALI. prefetch: batches ahead, of each process of Pillow. device: DALI's views
    are made there, Pillow's never leave the CPU; hardware: a GPU's JPEG engine takes part. Raises UserError for what
    cannot be.
    """
    settings = {
        "batch_size": batch_size, "num_views": num_views, "image_size": image_size, "augment": augment, "seed": seed,
        "rank": rank, "world_size": world_size,
    }  # fmt: skip
    if choose_pipeline(pipeline) == "pillow":
        pillow = PillowPipeline(source, **settings)
        return PillowLoader(
            pipeline=pillow, start_step=start_step, workers=workers, prefetch=prefetch, worker_cores=worker_cores
        )
    inputs = StepInputsOf(source, **settings)
    return DaliLoader(
        inputs,
        start_step=start_step,
        threads=max(1, workers),
        prefetch=prefetch,
        cores=worker_cores,
        device=device,
        hardware=hardware,
    )
