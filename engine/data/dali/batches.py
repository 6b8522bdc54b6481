"""Batches one after another: by a graph of DALI alone, or decoded by DALI and rendered by the native kernel.

The first is for GPUs, and for a CPU without the extension. The second gives the pixels of the Pillow pipeline to the
bit, which DALI's operators on the CPU come near to, at a multiple of the speed of both.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .. import native_views
from ..batch import Batch
from . import graph
from .inputs import StepInputs, StepInputsOf, view_arrays

NO_FILE = np.zeros(1, dtype=np.uint8)
ROWS_AT_ONCE = 4  # that a thread renders between two looks at what is left


def make_batches(
    inputs: StepInputsOf, *, threads: int, device: torch.device, hardware: bool
) -> "GraphBatches | NativeBatches":
    """What suits the device. To be used in one thread."""
    if device.type == "cpu" and native_views.available():
        return NativeBatches(inputs, threads=threads)
    return GraphBatches(inputs, threads=threads, device=device, hardware=hardware)


class NativeBatches:
    """DALI decodes a step's files while the kernel renders the step before it.

    settle: to be called while no batch is being made.
    """

    def __init__(self, inputs: StepInputsOf, *, threads: int):
        self._inputs, self._threads = inputs, threads
        self._decoder = None  # started with the first file
        self._decoded = None  # DALI's own list of the pictures that are being rendered: its memory is theirs
        self._decoding = False  # whether DALI has files in hand
        self._early = None  # what it has made of them, or the error it came with, where `settle` has waited for it
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="misplace-views")

    def batches(self, start_step: int) -> Iterator[Batch]:
        given = self._begin(start_step)
        for step in itertools.count(start_step):
            given, pictures = self._pictures(step, given)
            following = self._begin(step + 1)
            yield self._render(given, pictures)
            given = following

    def settle(self) -> None:
        """Waits for what DALI has begun."""
        if self._decoding and self._early is None:
            try:
                self._early = self._decoder.outputs()
            except RuntimeError as error:
                self._early = error

    def close(self) -> None:
        self._decoder = self._decoded = self._early = None
        self._pool.shutdown()
        self._inputs.close()

    def _begin(self, step: int) -> StepInputs:
        """Read a step; DALI begins to decode its files."""
        given = self._inputs[step]
        if files := [sample.data for sample in given.samples if sample.is_file]:
            if self._decoder is None:
                order = self._inputs.order
                most = order.batch_size // order.world_size
                channels = self._inputs.source.channels
                self._decoder = graph.build_decoder(channels, batch_size=most, threads=self._threads)
            self._decoder.feed_input("file", files)
            self._decoder.schedule_run()
            self._decoding = True
        return given

    def _pictures(self, step: int, given: StepInputs) -> tuple[StepInputs, list[Tensor]]:
        """Every sample decoded; by Pillow where DALI refuses a file of the step."""
        decoded = iter(())
        if any(sample.is_file for sample in given.samples):
            try:
                (self._decoded,) = self._outputs()
                decoded = iter(self._decoded)
            except RuntimeError:
                self._decoder = None  # one that has failed gives nothing any more
                given = self._inputs.decoded(step)
        return given, [
            torch.from_dlpack(next(decoded)) if sample.is_file else torch.from_numpy(sample.data)
            for sample in given.samples
        ]

    def _outputs(self):
        """What the decoder has made of the files in hand. RuntimeError where it refuses one."""
        early, self._early, self._decoding = self._early, None, False
        if isinstance(early, RuntimeError):
            raise early
        return self._decoder.outputs() if early is None else early

    def _render(self, given: StepInputs, pictures: list[Tensor]) -> Batch:
        channels, count = self._inputs.source.channels, len(pictures)
        sizes = [kind.size for kind in self._inputs.kinds]
        views = tuple(torch.empty((count, size, size, channels), dtype=torch.uint8) for size in sizes)
        parameters = native_views.pack(given.drawn, channels)
        starts = range(0, count, ROWS_AT_ONCE)
        parts = (range(start, min(start + ROWS_AT_ONCE, count)) for start in starts)
        for _ in self._pool.map(lambda rows: native_views.render_rows(pictures, parameters, rows, views), parts):
            pass
        return Batch(views, given.index, given.epoch, given.failures)


class GraphBatches:
    """DALI does everything, and has graph.QUEUE steps in hand."""

    def __init__(self, inputs: StepInputsOf, *, threads: int, device: torch.device, hardware: bool = True):
        self._inputs, self._threads, self._device, self._hardware = inputs, threads, device, hardware
        self._pending: deque[tuple[int, StepInputs]] = deque()
        self._no_picture = np.zeros((1, 1, inputs.source.channels), dtype=np.uint8)

    def batches(self, start_step: int) -> Iterator[Batch]:
        self._build()
        for step in itertools.count(start_step):
            self._schedule(step, self._inputs[step])
            if len(self._pending) == graph.QUEUE:
                yield self._finish()

    def settle(self) -> None:
        """Nothing: the one step that DALI has in hand is finished meanwhile."""

    def close(self) -> None:
        self._pipeline = None
        self._inputs.close()

    def _build(self) -> None:
        inputs, self._fed = self._inputs, 0
        self._pipeline, self._names = graph.build_views(
            inputs.kinds,
            inputs.augment,
            batch_size=inputs.order.batch_size // inputs.order.world_size,
            threads=self._threads,
            device_id=(self._device.index or 0) if self._device.type == "cuda" else None,
            hardware=self._hardware,
        )

    def _schedule(self, step: int, given: StepInputs) -> None:
        """Hand a step to DALI, which begins it at once."""
        self._pending.append((step, given))
        feed = {
            "is_file": np.array([sample.is_file for sample in given.samples]),
            "file": [sample.data if sample.is_file else NO_FILE for sample in given.samples],
            "picture": [self._no_picture if sample.is_file else sample.data for sample in given.samples],
        }
        for number, parameters in enumerate(given.drawn):
            arrays = view_arrays(parameters, self._inputs.source.channels)
            feed |= {f"{name}_{number}": array for name, array in arrays.items()}
        for name in self._names:
            self._pipeline.feed_input(name, feed[name])
        self._fed += 1
        if self._fed >= graph.QUEUE:  # DALI begins with as many as it holds
            self._pipeline.schedule_run()

    def _finish(self) -> Batch:
        """The first of the steps in DALI's hands; once more from Pillow's pixels where DALI refuses a file of it."""
        try:
            outputs = self._pipeline.outputs()
        except RuntimeError:
            outputs = self._again()
        _, given = self._pending.popleft()
        views = tuple(torch.from_dlpack(view.as_tensor()) for view in outputs)
        return Batch(views, given.index, given.epoch, given.failures)

    def _again(self):
        """A new pipeline for the steps in hand: one that has failed gives nothing any more."""
        steps = [step for step, _ in self._pending]
        self._pending.clear()
        self._build()
        self._schedule(steps[0], self._inputs.decoded(steps[0]))
        for step in steps[1:]:
            self._schedule(step, self._inputs[step])
        return self._pipeline.outputs()
