"""What an optimiser step works on: the lists of tensors, validated once, and the numbers of one step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import require_device, require_dtype, require_shape

OP = "adamw_ema"
MASTERS = ("parameters", "exp_avg", "exp_avg_sq", "teacher")
COPIES = ("student_copies", "teacher_copies")
GRADIENT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALAR_DTYPES = (torch.float32, torch.float64, torch.int64)


class AdamWTensors:
    """The tensors of one optimiser, one entry per parameter in every list.

    parameters, exp_avg, exp_avg_sq, teacher: fp32 (or fp64) masters, contiguous, shapes alike; teacher: None, or
    per tensor None or its EMA twin. student_copies and teacher_copies: None, or per tensor None or its bfloat16
    copy, contiguous. weight_decay: one per tensor. Made once, it spares every step the validation, and it keeps
    the tables of addresses that the Triton kernel reads.

    ValueError for lists of different length, shapes, devices, layouts; TypeError for dtypes.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        exp_avg: Sequence[Tensor],
        exp_avg_sq: Sequence[Tensor],
        weight_decay: Sequence[float],
        teacher: Sequence[Tensor | None] | None = None,
        student_copies: Sequence[Tensor | None] | None = None,
        teacher_copies: Sequence[Tensor | None] | None = None,
    ):
        none = [None] * len(parameters)
        self.parameters, self.exp_avg, self.exp_avg_sq = list(parameters), list(exp_avg), list(exp_avg_sq)
        self.weight_decay = [float(decay) for decay in weight_decay]
        self.teacher, self.student_copies, self.teacher_copies = (
            none if given is None else list(given) for given in (teacher, student_copies, teacher_copies)
        )
        self._validate()
        self.state, self.slots = self._flattened()
        self.addresses: tuple[Tensor, Tensor] | None = None  # the Triton kernel's, made at its first step

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype

    @property
    def has_teacher(self) -> bool:
        return any(slot >= 0 for slot in self.slots[::3])

    def require_length(self, name: str, entries: Sequence) -> None:
        """ValueError unless `entries` has one entry per parameter."""
        if len(entries) != len(self.parameters):
            raise ValueError(f"adamw_ema: {name} has {len(entries)} entries for {len(self.parameters)} parameters")

    def _validate(self) -> None:
        if not self.parameters:
            raise ValueError("adamw_ema: no parameters")
        for name in (*MASTERS, *COPIES, "weight_decay"):
            self.require_length(name, getattr(self, name))
        for i, parameter in enumerate(self.parameters):
            require_dtype(OP, f"parameters[{i}]", parameter, torch.float32, torch.float64)
            if self.teacher_copies[i] is not None and self.teacher[i] is None:
                raise ValueError(f"adamw_ema: teacher_copies[{i}] has no teacher")
            for name in (*MASTERS, *COPIES):
                tensor = getattr(self, name)[i]
                if tensor is not None:
                    dtype = torch.bfloat16 if name in COPIES else self.dtype
                    _require_twin(f"{name}[{i}]", tensor, parameter, self.device, dtype)

    def _flattened(self) -> tuple[list[Tensor], list[int]]:
        """Every tensor that is written, and per parameter where its teacher and copies are among them, or -1."""
        state, slots = [*self.parameters, *self.exp_avg, *self.exp_avg_sq], []
        for followers in zip(self.teacher, self.student_copies, self.teacher_copies):
            for tensor in followers:
                slots.append(-1 if tensor is None else len(state))
                state += [] if tensor is None else [tensor]
        return state, slots


def _require_twin(name: str, tensor: Tensor, parameter: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    require_shape(OP, name, tensor, parameter.shape, "its parameter's shape")
    require_device(OP, device, **{name: tensor})
    require_dtype(OP, name, tensor, dtype)
    if not tensor.is_contiguous():
        raise ValueError(f"adamw_ema: {name} must be contiguous")


class Scalars(NamedTuple):
    """What changes from step to step; each a number, or a tensor of one element on the parameters' device."""

    step: int | Tensor
    lr: float | Tensor
    decay_scale: float | Tensor
    grad_scale: float | Tensor
    momentum: float | Tensor
    found_inf: float | Tensor = 0.0

    def split(self) -> tuple[list[float], list[Tensor | None]]:
        """Numbers (0 where there is a tensor), and tensors (None where there is a number)."""
        numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in self]
        return numbers, [value if isinstance(value, Tensor) else None for value in self]

    def host(self) -> "Scalars":
        """All of them as Python numbers; waits for the device where one is a tensor."""
        return Scalars(*(value.item() if isinstance(value, Tensor) else value for value in self))
