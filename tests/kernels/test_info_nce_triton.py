"""The Triton kernels without a GPU: interpreted against the oracle, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = Path(__file__).with_name("interpreted_info_nce.py")
BF16, FP32 = torch.bfloat16, torch.float32
SHARED_BYTES = {80: 166912, 90: 232448, 100: 232448}  # that a program may have
STATISTICS = ("inverse_ptr", "key_inverse_ptr", "losses_ptr", "log_sums_ptr", "slopes_ptr", "own_ptr")


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("within the tolerance") for line in lines) == 16
    assert lines[-1] == "opcheck passed"


def type_of(name, constants, dtype):
    if name in constants:
        return "constexpr"
    if name.endswith("_ptr"):
        return "*fp32" if name in STATISTICS or dtype == FP32 else "*bf16"
    return "fp32" if name in ("factor", "share") else "i32"


def require_no_spill(kernel, constants, dtype, capability, num_warps):
    from misplace.kernels.testing.ahead_of_time import resources

    used = resources(
        kernel,
        {name: type_of(name, constants, dtype) for name in kernel.arg_names},
        constants,
        capability=capability,
        num_warps=num_warps,
        divisible=[name for name in kernel.arg_names if name.endswith(("_ptr", "_stride"))],
    )
    print(f"info_nce {kernel.__name__} {constants} {dtype} sm_{capability} warps={num_warps}: {used}")
    assert used.stack == 0, used
    assert used.shared <= SHARED_BYTES[capability], used


# 128 is SimCLR's width, 256 that of MoCo v3, 512 the widest
@pytest.mark.parametrize(
    "capability, width, dtype",
    [(80, 256, BF16), (90, 128, BF16), (90, 256, BF16), (100, 256, BF16), (90, 512, BF16), (90, 256, FP32)],
)
def test_compiled_ahead_of_time_does_not_spill(capability, width, dtype):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.info_nce.triton import launch_sizes
    from misplace.kernels.info_nce.triton_kernels import keys_kernel, queries_kernel

    sizes = launch_sizes(width, dtype)
    shape = dict(PAIRS=True, WIDTH=width, BLOCK=sizes.block)
    of_queries = shape | dict(GRADIENT=True, OWN_KEYS=False, BLOCK_Q=sizes.own, BLOCK_K=sizes.others)
    require_no_spill(queries_kernel, of_queries, dtype, capability, sizes.num_warps)
    of_keys = shape | dict(OWN_KEYS=True, BLOCK_Q=sizes.others, BLOCK_K=sizes.own)
    require_no_spill(keys_kernel, of_keys, dtype, capability, sizes.num_warps)


def test_normalise_compiled_ahead_of_time_does_not_spill():
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.info_nce.triton import NORMALISE_NUMBERS, NORMALISE_WARPS
    from misplace.kernels.info_nce.triton_kernels import normalise_kernel

    constants = dict(WIDTH=256, BLOCK=256, ROWS=NORMALISE_NUMBERS // 256)
    require_no_spill(normalise_kernel, constants, BF16, 90, NORMALISE_WARPS)
