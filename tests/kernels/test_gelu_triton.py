"""The Triton kernels of gelu without a GPU: interpreted against the oracle, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).with_name("interpreted_gelu.py")
FORWARD = {"x_ptr": "*bf16", "bias_ptr": "*fp32", "y_ptr": "*bf16", "size": "i32"}
BACKWARD = {
    "dy_ptr": "*bf16",
    "x_ptr": "*bf16",
    "bias_ptr": "*fp32",
    "dx_ptr": "*bf16",
    "parts_ptr": "*fp32",
    "size": "i32",
    "num_rows": "i32",
}


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("within the tolerance") for line in lines) == 12
    assert lines[-1] == "opcheck passed"


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiled_ahead_of_time_does_not_spill(capability):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.gelu import triton
    from misplace.kernels.testing.ahead_of_time import resources

    for kernel, types in ((triton.forward_kernel, FORWARD), (triton.backward_kernel, BACKWARD)):
        constants = dict(WIDTH=1536, HAS_BIAS=True, ROWS=triton.ROWS, BLOCK=triton.COLUMNS)
        signature = types | dict.fromkeys(constants, "constexpr")
        divisible = [name for name in types if name.endswith("_ptr")]
        used = resources(
            kernel, signature, constants, capability=capability, num_warps=triton.NUM_WARPS, divisible=divisible
        )
        print(f"{kernel.__name__} sm_{capability}: {used}")
        assert used.stack == 0, used
