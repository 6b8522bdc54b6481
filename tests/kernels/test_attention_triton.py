"""The Triton kernels without a GPU: interpreted against the oracle, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from misplace.kernels import Impl
from misplace.kernels.impl import why_unavailable

INTERPRETED = Path(__file__).with_name("interpreted_attention.py")
BF16, FP32 = torch.bfloat16, torch.float32
SHARED_BYTES = {80: 166912, 90: 232448, 100: 232448}  # that a program may have
POINTERS = {"cu_seqlens_ptr": "*i32", "log_sum_ptr": "*fp32"}
CPU = torch.device("cpu")


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("close") for line in lines) == 24
    assert lines[-1] == "opcheck passed"


def signature_of(kernel, constants, dtype):
    in_dtype = "*bf16" if dtype == BF16 else "*fp32"
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            types[name] = POINTERS.get(name, in_dtype)
        else:
            types[name] = "fp32" if name.endswith("scale") else "i32"
    return types


@pytest.mark.parametrize(
    "capability, keys, head_dim, dtype, mixed",
    [(capability, keys, 64, BF16, False) for capability in (80, 90, 100) for keys in (50, 99)]
    + [(capability, 197, 64, BF16, False) for capability in (90, 100)]  # the backward spills on sm_80: triton.py
    + [(90, 37, 32, BF16, False), (90, 256, 32, BF16, False), (90, 197, 64, BF16, True), (90, 50, 64, FP32, False)],
)
@pytest.mark.parametrize("backward", [False, True])
def test_compiled_ahead_of_time_does_not_spill(backward, capability, keys, head_dim, dtype, mixed):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.attention import triton, triton_kernels
    from misplace.kernels.testing.ahead_of_time import resources

    kernel = triton_kernels.backward_kernel if backward else triton_kernels.forward_kernel
    sizes = triton.launch_sizes(keys, dtype, backward)
    constants = dict(MIXED=mixed, DIM=head_dim, BLOCK_Q=sizes.block_q, BLOCK_K=sizes.block_k)
    constants |= dict(LEVELS=triton.levels(sizes.block_k, mixed)) | ({} if backward else dict(KEEP=True))
    used = resources(
        kernel,
        signature_of(kernel, constants, dtype),
        constants,
        capability=capability,
        num_warps=sizes.num_warps,
        divisible=[name for name in kernel.arg_names if name.endswith(("_ptr", "_image", "_token", "_head"))],
    )
    print(f"attention {kernel.__name__} {keys} keys d={head_dim} {dtype} mixed={mixed} sm_{capability}: {used}")
    assert used.stack == 0, used
    assert used.shared <= SHARED_BYTES[capability], used


def test_a_tile_is_the_least_that_holds_the_keys():
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.attention.triton import launch_sizes, levels

    blocks = [launch_sizes(keys, BF16, False).block_k for keys in (1, 32, 33, 50, 65, 99, 129, 197, 256)]
    assert blocks == [32, 32, 64, 64, 128, 128, 256, 256, 256]
    assert [levels(block, True) for block in (32, 64, 128, 256)] == [1, 2, 3, 4]
    assert levels(256, False) == 1


@pytest.mark.skipif(why_unavailable(Impl.TRITON, CPU) is None, reason="TRITON_INTERPRET=1 makes it available")
def test_the_cpu_says_why_not():
    from misplace.kernels import ImplUnavailableError, attention

    with pytest.raises(ImplUnavailableError, match="impl=triton is not available: triton"):
        attention(torch.zeros(1, 2, 96), num_heads=1, impl="triton")
