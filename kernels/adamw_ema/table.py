"""Where the tensors lie, as a table on the device that the Triton kernel reads.

Per tensor FIELDS int64: the addresses of parameter, gradient, exp_avg, exp_avg_sq, teacher, student copy and teacher
copy (0: none), its number of elements, the gradient's kind (0 fp32, 1 bf16, 2 fp16), the bits of its fp32 weight
decay, and 1 where every address is divisible by 16. Then per piece of PIECE elements: tensor << 32 | number of
the piece.
"""

import struct

import torch
from torch import Tensor

from .tensors import AdamWTensors

FIELDS = 11
# 8 elements a thread: two loads of 16 bytes per fp32 stream
PIECE, NUM_WARPS = 2048, 8
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def make_addresses(tensors: AdamWTensors) -> tuple[Tensor, Tensor, Tensor]:
    """key (what the table holds; its last entry: a CUDA graph reads the table), staging and table, all empty."""
    num_rows = FIELDS * len(tensors.parameters)
    num_pieces = sum(-(-p.numel() // PIECE) for p in tensors.parameters)
    staging = torch.zeros(num_rows + num_pieces, dtype=torch.int64, pin_memory=tensors.device.type == "cuda")
    key = torch.zeros(num_rows + 1, dtype=torch.int64)
    return key, staging, torch.zeros(num_rows + num_pieces, dtype=torch.int64, device=tensors.device)


def current_table(
    state: list[Tensor],
    slots: list[int],
    gradients: list[Tensor | None],
    weight_decay: list[float],
    key: Tensor,
    staging: Tensor,
    table: Tensor,
) -> Tensor:
    """The table, rewritten where a tensor has moved since; never under a captured graph, which goes on reading it.

    RuntimeError in a second capture with other addresses.
    """
    rows = torch.tensor(_rows(state, slots, gradients, weight_decay), dtype=torch.int64)
    capturing = table.is_cuda and torch.cuda.is_current_stream_capturing()
    if not torch.equal(rows, key[:-1]):
        whole = torch.cat([rows, torch.tensor(_pieces(state[: len(gradients)]), dtype=torch.int64)])
        if key[-1]:
            if capturing:
                raise RuntimeError("adamw_ema: tensors moved since the last capture; each graph needs its AdamWTensors")
            return whole.to(table.device)
        if capturing:
            # replays copy again from the page-locked staging, which nobody writes from now on
            table.copy_(staging.copy_(whole), non_blocking=True)
        else:
            table.copy_(whole)
        key[:-1] = rows
    if capturing:
        key[-1] = 1
    return table


def _rows(state, slots, gradients, weight_decay) -> list[int]:
    count, rows = len(gradients), []
    addresses = [tensor.data_ptr() for tensor in state] + [0]  # slot -1 is none
    for i, gradient in enumerate(gradients):
        here = [
            addresses[i],
            0 if gradient is None else gradient.data_ptr(),
            addresses[count + i],
            addresses[2 * count + i],
            *(addresses[slot] for slot in slots[3 * i : 3 * i + 3]),
        ]
        kind = 0 if gradient is None else KINDS[gradient.dtype]
        (decay,) = struct.unpack("<i", struct.pack("<f", weight_decay[i]))
        rows += [*here, state[i].numel(), kind, decay, int(all(address % 16 == 0 for address in here))]
    return rows


def _pieces(parameters: list[Tensor]) -> list[int]:
    return [i << 32 | piece for i, p in enumerate(parameters) for piece in range(-(-p.numel() // PIECE))]
