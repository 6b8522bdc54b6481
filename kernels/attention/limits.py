"""What each implementation of attention takes, in one place: for the error of a named one and for "auto"."""

import torch

from ..impl import Impl

MAX_KEYS = 256
TRITON_HEAD_DIMS = (16, 32, 64)
HALF = (torch.bfloat16, torch.float16)
DTYPES = {
    Impl.NATIVE: (torch.float32, torch.bfloat16),
    Impl.TRITON: (*HALF, torch.float32),
    Impl.XFORMERS: (*HALF, torch.float32),
    Impl.SDPA_FLASH: HALF,  # on a GPU
    Impl.SDPA_CUDNN: HALF,
    Impl.SDPA_EFFICIENT: (*HALF, torch.float32),
}
EVENLY = {Impl.XFORMERS: 256, Impl.SDPA_FLASH: 256, Impl.SDPA_CUDNN: 128}  # the largest head dim, a multiple of 8
ONE_LENGTH = (Impl.SDPA_CUDNN, Impl.SDPA_EFFICIENT)  # no cu_seqlens


def max_keys(head_dim: int, dtype: torch.dtype) -> int:
    """Of Triton. In fp32, 256 keys of 64 numbers would not leave room in shared memory for their gradients."""
    return MAX_KEYS // 2 if dtype == torch.float32 and head_dim > 32 else MAX_KEYS


def refusal(
    impl: Impl, device_type: str, dtype: torch.dtype, head_dim: int, keys: int | None, mixed: bool
) -> TypeError | ValueError | None:
    """The error with which `impl` answers such an input; None where it takes it. keys: of the longest sequence."""
    on_cpu = device_type == "cpu" and impl is Impl.SDPA_FLASH
    dtypes = None if on_cpu else DTYPES.get(impl)
    if dtypes and dtype not in dtypes:
        *others, last = map(str, dtypes)
        return TypeError(f"attention: impl={impl.value} takes {', '.join(others)} or {last}, not {dtype}")
    if mixed and (on_cpu or impl in ONE_LENGTH):
        return ValueError(f"attention: impl={impl.value} takes no cu_seqlens on {device_type}")
    if not on_cpu and impl in EVENLY and (head_dim % 8 or head_dim > EVENLY[impl]):
        return ValueError(
            f"attention: impl={impl.value} takes a head dim that 8 divides, at most {EVENLY[impl]}, not {head_dim}"
        )
    return _refusal_of_triton(dtype, head_dim, keys) if impl is Impl.TRITON else None


def _refusal_of_triton(dtype: torch.dtype, head_dim: int, keys: int | None) -> ValueError | None:
    if head_dim not in TRITON_HEAD_DIMS:
        return ValueError(f"attention: impl=triton takes a head dim of {TRITON_HEAD_DIMS}, not {head_dim}")
    if keys is not None and keys > (most := max_keys(head_dim, dtype)):
        return ValueError(f"attention: impl=triton takes at most {most} keys of {head_dim} {dtype}, not {keys}")
    return None
