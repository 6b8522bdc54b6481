"""A recipe's method and optimiser with some batches of its data in memory: real steps, nothing written."""

import itertools
import time
from collections.abc import Iterator

import torch

from misplace.engine.config import Config
from misplace.engine.data import Batch, make_loader, open_source
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method, build_optimizer
from misplace.engine.resolve import resolve

from ..memory import peak_bytes
from ..next_step import next_step

NUM_BATCHES = 3


class Session:
    """`step()` trains on the next batch; the batches come round again, so that no step waits for data."""

    def __init__(self, config: Config):
        source = open_source(config.data.source)
        self.config = config = resolve(config, source)
        self.device = torch.device(config.run.device)
        self.impls = resolve_implementations(self.device, config.run.impl)
        self.method = build_method(config, source, self.impls)
        self.optimizer = build_optimizer(self.method, config, self.impls)
        # no CUDA graph: the profiler would not know which op a kernel of it belongs to
        self._train = next_step(self.method, self.optimizer, config, self._load(source), captured=False)

    def _load(self, source) -> list[Batch]:
        data = self.config.data
        loader = make_loader(
            source,
            batch_size=data.batch_size,
            num_views=self.method.framework.num_views,
            image_size=self.config.model.image_size,
            augment=data.augment,
            seed=self.config.run.seed,
            workers=data.workers,
            prefetch=data.prefetch,
            pipeline=data.pipeline,
        )
        with loader:
            return list(itertools.islice(loader, NUM_BATCHES))

    def step(self) -> None:
        self._train()

    def timed_steps(self, count: int) -> Iterator[float]:
        """Milliseconds of each of `count` steps."""
        for _ in range(count):
            self._settle()
            start = time.perf_counter()
            self.step()
            self._settle()
            yield (time.perf_counter() - start) * 1e3

    def peak_memory(self) -> int:
        """Bytes that one step takes at its peak, above what is held before it."""
        return peak_bytes(self.step, self.device)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
