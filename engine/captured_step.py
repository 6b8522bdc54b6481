"""The step as one CUDA graph: no Python, no allocation and no launch of its own between the kernels.

The first steps run eagerly, which compiles every kernel and fills every cache; then the same step is captured on
the same memory and replayed. Gradients lie in the graph's own memory: the backward writes them there and the update
reads them, so that none is set to zero or added to first. Nothing in a step draws random numbers: plans and crops
are functions of seed, epoch and index, and plans come with the input.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from misplace.kernels import Impl

from .device_step import StepInput, StepOutput, device_step
from .errors import UserError
from .method import Method
from .optim import AdamWEMA

EAGER_STEPS = 3  # before the capture
# what reads from the device inside a step, or sends it numbers from memory that is not page-locked
READS_BACK = {
    "adamw_ema": (Impl.TORCH, Impl.REFERENCE),
    "patch_embed": (Impl.TORCH, Impl.REFERENCE),
}


def why_not_captured(impls: Mapping[str, Impl], device: torch.device) -> str | None:
    """None when a step with these implementations can be one CUDA graph on `device`, otherwise the reason."""
    if device.type != "cuda":
        return "needs a CUDA device"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "collectives between ranks are not captured"
    waiting = [f"{op}={impls[op]}" for op, waits in READS_BACK.items() if impls[op] in waits]
    return f"{', '.join(waiting)} reads or writes the host's memory within a step" if waiting else None


class CapturedStep:
    """device_step on memory that stays where it is: what is in `given` when it is called is what is trained on.

    Called with the same current stream every time, and not with the default one.
    """

    def __init__(self, method: Method, optimizer: AdamWEMA, given: StepInput, found_inf: Tensor):
        self._arguments = method, optimizer, given, found_inf
        self._eager_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: StepOutput | None = None  # of the graph: every replay writes it again

    def __call__(self) -> StepOutput:
        if self._eager_steps < EAGER_STEPS:
            self._eager_steps += 1
            return device_step(*self._arguments)
        if self._graph is None:
            self._capture()
        self._graph.replay()
        return self._output

    def _capture(self) -> None:
        """Records the step; nothing of it runs, and no state changes."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: another thread of the process may use CUDA meanwhile
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._output = device_step(*self._arguments)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the step cannot be captured ({reason}); go on with --run.no-cuda-graph") from error
        self._graph = graph
