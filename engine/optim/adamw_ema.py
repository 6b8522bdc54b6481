"""AdamW over every trained parameter, with the EMA teacher and the low-precision copies in the same pass."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from misplace.kernels.adamw_ema import AdamWTensors, update

from . import adamw_state


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. The defaults are MoCo v3's for ViT-S/16. [S]"""

    base_lr: float = 1.5e-4
    """Peak learning rate per 256 images of batch."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on every parameter."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    warmup: float = 40 / 300
    """Share of the run with a rising learning rate."""
    clip_norm: float | None = None
    """Largest global gradient norm; none: not clipped."""


class AdamWEMA:
    """The state of torch.optim.AdamW, one step count, and who is averaged or copied from each parameter.

    named: (name, parameter) of everything with a gradient; teachers: parameter -> its EMA; copies: master -> its
    low-precision copy, for students and teachers alike.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        teachers: dict[nn.Parameter, nn.Parameter],
        copies: dict[nn.Parameter, Tensor],
        impl: str = "auto",
    ):
        self.config, self.impl = config, impl
        trained = [(name, p) for name, p in named if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.parameters = [p for _, p in trained]
        self.steps = 0
        self.copies = copies
        followed = [teachers.get(p) for p in self.parameters]
        self.tensors = AdamWTensors(
            self.parameters,
            [torch.zeros_like(p) for p in self.parameters],
            [torch.zeros_like(p) for p in self.parameters],
            [config.weight_decay] * len(self.parameters),
            followed,
            [copies.get(p) for p in self.parameters],
            [None if t is None else copies.get(t) for t in followed],
        )

    @property
    def exp_avg(self) -> list[Tensor]:
        return self.tensors.exp_avg

    @property
    def exp_avg_sq(self) -> list[Tensor]:
        return self.tensors.exp_avg_sq

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """Global L2 norm of all gradients, fp32 scalar; NaN or infinite when any gradient is."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))

    @torch.no_grad()
    def step(
        self,
        *,
        lr: float | Tensor,
        grad_norm: float | Tensor,
        momentum: float | Tensor,
        step: Tensor | None = None,
        found_inf: float | Tensor = 0.0,
    ) -> None:
        """One update of parameters, teacher and copies; gradients are freed. grad_norm clips by config.clip_norm.

        Numbers, or tensors of one element on the parameters' device, which the host then never reads. step: the
        number of this update, which the caller counts in `steps`; none: counted here. found_inf: where it is not 0
        nothing is written.
        """
        if step is None:
            self.steps += 1
        update(
            self.tensors,
            [p.grad for p in self.parameters],
            step=self.steps if step is None else step,
            lr=lr,
            betas=self.config.betas,
            eps=self.config.eps,
            grad_scale=self._grad_scale(grad_norm),
            momentum=momentum,
            found_inf=found_inf,
            impl=self.impl,
        )
        for parameter in self.parameters:
            parameter.grad = None

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
        for name, first, second in zip(self.names, self.exp_avg, self.exp_avg_sq):
            state[f"exp_avg.{name}"] = first
            state[f"exp_avg_sq.{name}"] = second
        return state

    @torch.no_grad()
    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """The inverse of state_tensors; also refreshes every low-precision copy from its master."""
        self.steps = int(state["steps"])
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
        self.steps = moments[0]
        for ours, theirs in zip((self.exp_avg, self.exp_avg_sq), moments[1:]):
            torch._foreach_copy_(ours, theirs)

    def _torch_adamw(self, lr: float) -> torch.optim.AdamW:
        config = self.config
        return torch.optim.AdamW(
            self.parameters, lr=lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
