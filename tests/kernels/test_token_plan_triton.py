"""The Triton kernel without a GPU: interpreted against the plan by hand, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).with_name("interpreted_token_plan.py")
SIGNATURE = {
    "index_ptr": "*i64",
    "src_ptr": "*i32",
    "pos_ptr": "*i32",
    "wrong_ptr": "*i1",
    "seed": "i64",
    "epoch": "i64",
    "view": "i32",
    "threshold": "i64",
    "NUM_PATCHES": "constexpr",
    "NUM_KEPT": "constexpr",
    "BLOCK": "constexpr",
}


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("equal") for line in lines) == 20
    assert lines[-1] == "opcheck passed"


# 196 takes the short way, 197 the exchange among wrong tokens; the largest plan holds most registers
@pytest.mark.parametrize(
    "capability, num_patches, num_kept",
    [(capability, *sizes) for capability in (80, 90, 100) for sizes in ((196, 49), (197, 150))] + [(90, 1024, 600)],
)
def test_compiled_ahead_of_time_does_not_spill(capability, num_patches, num_kept):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.testing.ahead_of_time import resources
    from misplace.kernels.token_plan.triton import launch_sizes, token_plan_kernel

    block, num_warps = launch_sizes(num_patches)
    constants = dict(NUM_PATCHES=num_patches, NUM_KEPT=num_kept, BLOCK=block)
    used = resources(token_plan_kernel, SIGNATURE, constants, capability=capability, num_warps=num_warps)
    print(f"token_plan L={num_patches} K={num_kept} sm_{capability} warps={num_warps}: {used}")
    assert used.stack == 0, used
