"""The registered op misplace::adamw_ema; misplace.kernels._C adds its kernels (csrc/)."""

import torch
from torch import Tensor

from .tensors import AdamWTensors, Scalars

_library = torch.library.Library("misplace", "FRAGMENT")
# state: parameters, exp_avg, exp_avg_sq, then teachers and copies; slots: where those are, three per parameter or -1
_library.define(
    "adamw_ema(Tensor(a!)[] state, int[] slots, Tensor?[] gradients, float[] weight_decay, float[] numbers, "
    "Tensor?[] scalars, float beta1, float beta2, float eps, str path) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define("adamw_ema_path() -> str")


@torch.library.register_fake("misplace::adamw_ema", lib=_library)
def _fake(state, slots, gradients, weight_decay, numbers, scalars, beta1, beta2, eps, path):
    return None


def adamw_ema_native(
    tensors: AdamWTensors,
    gradients: list[Tensor | None],
    scalars: Scalars,
    betas: tuple[float, float],
    eps: float,
    *,
    path: str = "best",
) -> None:
    """path, on the CPU: "avx512", "avx2" or "plain"; all give the same bits."""
    numbers, on_device = scalars.split()
    torch.ops.misplace.adamw_ema(
        tensors.state, tensors.slots, gradients, tensors.weight_decay, numbers, on_device, *betas, eps, path
    )


def cpu_path() -> str:
    """The widest vectors that this CPU's kernels use: "avx512", "avx2" or "plain"."""
    return torch.ops.misplace.adamw_ema_path()
