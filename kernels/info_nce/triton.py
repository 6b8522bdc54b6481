"""info_nce and nt_xent on the GPU: rows normalised once, a program per tile of queries and one per tile of keys.

Formula         reference.py. A tile of queries meets the keys tile by tile; its sums of powers are corrected when a
                larger similarity comes. What the positive adds is kept apart, so its gradient, 1 - its probability,
                is a sum of small numbers. A tile of keys makes the powers again from the log of their sum.
Bytes moved     in bf16 some 8 D a row for the normalised copies, 4 D for the gradient; a tile reads the other side's
                rows, from L2. No similarity is written.
Operations      4 N M D with the gradient of the queries, 4 N M D more with that of the keys, on tensor cores for bf16
                and fp16.
Saved           the gradients themselves, for a loss of weight 1; backward multiplies where the weight is another.
Against eager   the matrix of similarities, fp32 [N, M], is written and read some ten times; here it is never in
                memory, and some 20 launches are three, or four with the gradient of the keys.

No atomics, every sum in one program: a run repeats to the bit.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .autograd import define, differentiable, empty_results
from .triton_kernels import keys_kernel, normalise_kernel, queries_kernel

SMALLEST_BLOCK, NORMALISE_NUMBERS, NORMALISE_WARPS = 16, 4096, 4


class LaunchSizes(NamedTuple):
    """own: rows whose sums a program holds; others: rows that it meets at a time."""

    block: int
    own: int
    others: int
    num_warps: int


# by the power of 2 that holds the width: own rows, others, warps. Chosen by the registers that compilers report, not
# by a clock. fp32 is multiplied without tensor cores, in smaller tiles.
LAUNCH = {64: (32, 64, 4), 128: (32, 64, 4), 256: (32, 64, 8), 512: (16, 32, 8)}
LAUNCH_FP32 = {64: (16, 16, 4), 128: (16, 16, 4), 256: (16, 16, 4), 512: (16, 16, 8)}


def launch_sizes(width: int, dtype: torch.dtype) -> LaunchSizes:
    block = max(SMALLEST_BLOCK, triton.next_power_of_2(width))
    return LaunchSizes(block, *(LAUNCH_FP32 if dtype == torch.float32 else LAUNCH)[max(64, block)])


def _readable(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _launch(query, key, temperature, first_row, pairs, query_gradient, key_gradient):
    own_keys = key is None
    out = empty_results(query, key, query_gradient, key_gradient)
    query = _readable(query)
    key = query if own_keys else _readable(key)
    (queries, width), keys = query.shape, key.shape[0]
    sizes = launch_sizes(width, query.dtype)
    separate = 0 if own_keys else keys
    units = query.new_empty(queries + separate, sizes.block)
    inverse = query.new_empty(queries + separate, dtype=torch.float32)
    statistics = query.new_empty((3, queries), dtype=torch.float32)
    key_units, key_inverse = (units, inverse) if own_keys else (units[queries:], inverse[queries:])
    own_gradient = own_keys and query_gradient
    d_own = query.new_empty((queries, sizes.block) if own_gradient else (0,), dtype=torch.float32)
    numbers = (queries, keys, first_row, math.log2(math.e) / temperature, 1 / (temperature * queries))
    shape = dict(PAIRS=pairs, OWN_KEYS=own_gradient, WIDTH=width, BLOCK=sizes.block)

    rows = max(1, NORMALISE_NUMBERS // sizes.block)
    normalise_kernel[(triton.cdiv(queries + separate, rows),)](
        query, key, query.stride(0), key.stride(0), units, inverse, queries, separate,
        WIDTH=width, BLOCK=sizes.block, ROWS=rows, num_warps=NORMALISE_WARPS,
    )  # fmt: skip
    queries_kernel[(triton.cdiv(queries, sizes.own),)](
        query, query.stride(0), units, key_units, inverse, *statistics, d_own if own_gradient else out.d_query,
        *numbers, GRADIENT=query_gradient, **shape, BLOCK_Q=sizes.own, BLOCK_K=sizes.others,
        num_warps=sizes.num_warps,
    )  # fmt: skip
    if own_gradient or (key_gradient and not own_keys):
        log_sums, slopes = statistics[1:]
        d_key = out.d_query if own_gradient else out.d_key
        keys_kernel[(triton.cdiv(keys, sizes.own),)](
            key, key.stride(0), units, key_units, key_inverse, log_sums, slopes, d_own, d_key, *numbers,
            **shape, BLOCK_Q=sizes.others, BLOCK_K=sizes.own, num_warps=sizes.num_warps,
        )  # fmt: skip
    return statistics[0].mean(), out.d_query, out.d_key


_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "info_nce_triton")
for _device in ("CUDA", "CPU"):  # on the CPU the interpreter; api.py refuses anything else there
    _library.impl("info_nce_triton", _launch, _device)


def info_nce(query: Tensor, key: Tensor, temperature: float, first_row: int) -> Tensor:
    return differentiable(torch.ops.misplace.info_nce_triton, query, key, temperature, first_row, False)


def nt_xent(query: Tensor, key: Tensor, temperature: float, first_row: int) -> Tensor:
    return differentiable(torch.ops.misplace.info_nce_triton, query, key, temperature, first_row, True)
