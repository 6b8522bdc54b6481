"""AdamW over every trained parameter, with the EMA teacher and the low-precision copies in the same pass."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from misplace.kernels.adamw_ema import AdamWTensors, update

from ..errors import UserError
from . import adamw_state
from .schedules import half_cosine


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. The defaults are MoCo v3's for ViT-S/16. [S]"""

    base_lr: float = 1.5e-4
    """Peak learning rate per 256 images of batch."""
    final_lr: float = 0.0
    """Learning rate at the end of the run."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    final_weight_decay: float | None = None
    """Weight decay at the end of the run, reached by half a cosine; none: it stays the same."""
    decay_vectors: bool = True
    """Biases and the parameters of norms decay too."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    warmup: float = 40 / 300
    """Share of the run with a rising learning rate."""
    clip_norm: float | None = None
    """Largest gradient norm; none: not clipped."""
    clip_each: bool = False
    """clip_norm holds for every parameter by itself, not for all together."""

    def __post_init__(self):
        if self.final_weight_decay is not None and not self.weight_decay > 0:
            raise UserError("--optim.final-weight-decay: needs a --optim.weight-decay above 0 to start from")

    def decay_scale(self, progress: float) -> float:
        """What the weight decay is multiplied by at `progress` in [0, 1] of the run."""
        if self.final_weight_decay is None:
            return 1.0
        return half_cosine(progress, self.weight_decay, self.final_weight_decay) / self.weight_decay


class StepNumbers(NamedTuple):
    """What changes from update to update; each a number, or a tensor of one element that the host never reads.

    step: which update this is, from 1; late_step: of the late parameters, 0 where they are held; momentum: the
    teacher's; decay_scale: what the weight decay is multiplied by.
    """

    step: int | Tensor
    late_step: int | Tensor
    lr: float | Tensor
    momentum: float | Tensor
    decay_scale: float | Tensor


class AdamWEMA:
    """The state of torch.optim.AdamW, its step counts, and who is averaged or copied from each parameter.

    named: (name, parameter) of everything with a gradient; teachers: parameter -> its EMA; copies: master -> its
    low-precision copy, for students and teachers alike; late: parameters that can be held for some steps at the
    start, and whose updates are counted by themselves.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        teachers: dict[nn.Parameter, nn.Parameter],
        copies: dict[nn.Parameter, Tensor],
        late: Iterable[nn.Parameter] = (),
        impl: str = "auto",
    ):
        self.config, self.impl = config, impl
        late = set(late)
        trained = sorted(((name, p) for name, p in named if p.requires_grad), key=lambda named: named[1] in late)
        self.names = [name for name, _ in trained]
        self.parameters = [p for _, p in trained]
        self.exp_avg = [torch.zeros_like(p) for p in self.parameters]
        self.exp_avg_sq = [torch.zeros_like(p) for p in self.parameters]
        self.steps = self.late_steps = 0
        self.copies = copies
        first_late = len(trained) - len(late)
        self.early, self.late = slice(first_late), slice(first_late, None)
        self.tensors = self._tensors(self.early, teachers)
        self.late_tensors = self._tensors(self.late, teachers) if late else None

    def _tensors(self, part: slice, teachers: dict[nn.Parameter, nn.Parameter]) -> AdamWTensors:
        parameters, names = self.parameters[part], self.names[part]
        followed = [teachers.get(p) for p in parameters]
        return AdamWTensors(
            parameters,
            self.exp_avg[part],
            self.exp_avg_sq[part],
            [self._decay(name, p) for name, p in zip(names, parameters)],
            followed,
            [self.copies.get(p) for p in parameters],
            [None if t is None else self.copies.get(t) for t in followed],
        )

    def _decay(self, name: str, parameter: nn.Parameter) -> float:
        is_vector = parameter.ndim == 1 or name.endswith(".bias")
        return 0.0 if is_vector and not self.config.decay_vectors else self.config.weight_decay

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """Global L2 norm of all gradients, fp32 scalar; NaN or infinite when any gradient is."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))

    def count_step(self, *, holds_late: bool = False) -> tuple[int, int]:
        """The number of the next update, and of that of the late parameters, 0 where they are held."""
        self.steps += 1
        self.late_steps += not holds_late
        return self.steps, 0 if holds_late else self.late_steps

    @torch.no_grad()
    def step(self, numbers: StepNumbers, *, grad_norm: float | Tensor, found_inf: float | Tensor = 0.0) -> None:
        """One update of parameters, teacher and copies; gradients are freed.

        grad_norm: of all gradients, by which config.clip_norm clips; found_inf: where it is not 0 nothing is written.
        """
        if self.config.clip_each:
            self._clip_each()
        scale = 1.0 if self.config.clip_each else self._grad_scale(grad_norm)
        self._update(self.tensors, self.early, numbers, numbers.step, scale, found_inf)
        if self.late_tensors is not None:
            step = numbers.late_step
            if isinstance(step, Tensor):
                found_inf = torch.maximum((step == 0).to(found_inf.dtype), found_inf)
                self._update(self.late_tensors, self.late, numbers, step.clamp(min=1), scale, found_inf)
            elif step:
                self._update(self.late_tensors, self.late, numbers, step, scale, found_inf)
        for parameter in self.parameters:
            parameter.grad = None

    def _update(self, tensors: AdamWTensors, part: slice, numbers: StepNumbers, step, grad_scale, found_inf) -> None:
        update(
            tensors,
            [p.grad for p in self.parameters[part]],
            step=step,
            lr=numbers.lr,
            betas=self.config.betas,
            eps=self.config.eps,
            decay_scale=numbers.decay_scale,
            grad_scale=grad_scale,
            momentum=numbers.momentum,
            found_inf=found_inf,
            impl=self.impl,
        )

    def _clip_each(self) -> None:
        """As DINO does: each gradient by its own norm. [S]"""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(grads)
        torch._foreach_mul_(grads, [(self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms])

    def _grad_scale(self, grad_norm: float | Tensor) -> float | Tensor:
        """The same bits from a number and from a tensor: both divide in fp64."""
        clip = self.config.clip_norm
        if clip is None:
            return 1.0
        if isinstance(grad_norm, Tensor):
            # a tensor by a tensor: a number by a tensor is its reciprocal times the number, rounded twice
            return (grad_norm.new_full((), clip, dtype=torch.float64) / (grad_norm.double() + 1e-6)).clamp(max=1.0)
        return min(1.0, clip / (grad_norm + 1e-6))

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, by name."""
        state = {"steps": torch.tensor(self.steps)}
        if self.late_tensors is not None:
            state["late_steps"] = torch.tensor(self.late_steps)
        for name, first, second in zip(self.names, self.exp_avg, self.exp_avg_sq):
            state[f"exp_avg.{name}"] = first
            state[f"exp_avg_sq.{name}"] = second
        return state

    @torch.no_grad()
    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """The inverse of state_tensors; also refreshes every low-precision copy from its master."""
        self.steps = int(state["steps"])
        self.late_steps = int(state.get("late_steps", self.steps))
        for name, first, second in zip(self.names, self.exp_avg, self.exp_avg_sq):
            first.copy_(state[f"exp_avg.{name}"])
            second.copy_(state[f"exp_avg_sq.{name}"])
        for master, low in self.copies.items():
            low.copy_(master)

    def to_adamw_state_dict(self, *, lr: float | None = None) -> dict[str, Any]:
        """What torch.optim.AdamW(self.parameters).load_state_dict takes; lr: none is config.base_lr."""
        moments = self.steps, self.exp_avg, self.exp_avg_sq
        return adamw_state.to_state_dict(self._torch_adamw(self.config.base_lr if lr is None else lr), moments)

    @torch.no_grad()
    def load_adamw_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Steps and moments of a torch.optim.AdamW over self.parameters, in their order; its lr is not taken.

        ValueError where it is of other parameters or differs in betas, eps, decay or variant.
        """
        moments = adamw_state.from_state_dict(self._torch_adamw(self.config.base_lr), state_dict)
        self.steps = self.late_steps = moments[0]
        for ours, theirs in zip((self.exp_avg, self.exp_avg_sq), moments[1:]):
            torch._foreach_copy_(ours, theirs)

    def _torch_adamw(self, lr: float) -> torch.optim.AdamW:
        config = self.config
        if not config.decay_vectors or self.late_tensors is not None:
            raise ValueError("AdamW state: only of an optimiser whose parameters all decay and are all updated alike")
        return torch.optim.AdamW(
            self.parameters, lr=lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
