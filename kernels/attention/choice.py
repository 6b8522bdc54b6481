"""Which implementation of attention "auto" means, from a measured table (choices.csv, by bench/attention_choices.py).

A row says: on this device and kind of it, in this dtype, with or without a backward, for at most so many tokens of
this head dim and at least so many images x heads, this one was the fastest; or it is the first of SUPPORTED, and
nothing beat it by more than noise. Of the rows that fit, the one of the fewest tokens counts, then the one of the most
images x heads. Where none fits, or the machine lacks what it names, the first of SUPPORTED that takes the input.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import torch

from ..impl import Impl, ImplUnavailableError, why_unavailable
from .limits import refusal

OP = "attention"
# best first where nothing was measured: on a GPU, the one that takes everything
SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.SDPA_FLASH, Impl.TRITON),
    "cuda": (
        Impl.TORCH, Impl.TRITON, Impl.XFORMERS, Impl.SDPA_FLASH, Impl.SDPA_CUDNN, Impl.SDPA_EFFICIENT, Impl.REFERENCE,
    ),
}  # fmt: skip
PATH = Path(__file__).with_name("choices.csv")


class Choice(NamedTuple):
    """One row of choices.csv."""

    device: str
    kind: str  # of the device: kind_of
    dtype: str
    mode: str  # "forward" or "forward+backward"
    tokens_up_to: int
    head_dim: int
    rows_at_least: int  # images (or sequences) x heads
    impl: str
    next_best: str
    ratio: float  # ms of the next best / ms of impl
    threads: int  # of a CPU; 0 on a GPU


def read(path: Path) -> tuple[Choice, ...]:
    """The rows, in the order in which they are asked."""
    with path.open(newline="") as file:
        rows = [_choice(row) for row in csv.DictReader(file)]
    return tuple(sorted(rows, key=lambda row: (row.tokens_up_to, -row.rows_at_least)))


def _choice(row: dict[str, str]) -> Choice:
    types = Choice.__annotations__
    return Choice(**{name: types[name](row[name]) for name in Choice._fields})


# read at import: a file cannot be opened while torch.compile traces
TABLE = read(PATH)


def _cpu_kind() -> str:
    flags = (("avx512_bf16", "_is_avx512_bf16_supported"), ("amx", "_is_amx_tile_supported"))
    found = [name for name, ask in flags if getattr(torch.cpu, ask, lambda: False)()]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *found])


CPU_KIND = _cpu_kind()


def kind_of(device: torch.device) -> str:
    """Instruction sets of a CPU, such as "AVX512 avx512_bf16"; compute capability of a GPU, such as "9.0"."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.major}.{properties.minor}"
    return CPU_KIND if device.type == "cpu" else ""


def candidates(
    device: torch.device, dtype: torch.dtype, tokens: int | None, head_dim: int, mixed: bool = False
) -> list[Impl]:
    """What runs here and takes such an input, in the order of SUPPORTED."""
    return [
        impl
        for impl in SUPPORTED.get(device.type, ())
        if why_unavailable(impl, device) is None and refusal(impl, device.type, dtype, head_dim, tokens, mixed) is None
    ]


def attention_choice(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    head_dim: int,
    rows: int,
    *,
    with_gradient: bool = True,
    mixed: bool = False,
) -> Impl:
    """What impl="auto" runs: tokens of the longest sequence, rows = images (or sequences) x heads.

    ImplUnavailableError where nothing takes such an input on `device`.
    """
    able = candidates(device, dtype, tokens, head_dim, mixed)
    if not able:
        raise ImplUnavailableError(f"attention: no implementation for {device.type}")
    mode = "forward+backward" if with_gradient else "forward"
    wanted = (device.type, kind_of(device), str(dtype).removeprefix("torch."), mode, head_dim)
    for row in TABLE:
        if (row.device, row.kind, row.dtype, row.mode, row.head_dim) != wanted:
            continue
        if tokens <= row.tokens_up_to and rows >= row.rows_at_least and row.impl in able:
            return Impl(row.impl)
    return able[0]
