"""The Triton kernels of layer_norm and add_layer_norm without a GPU: interpreted, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).with_name("interpreted_layer_norm.py")
FORWARD = {
    "x_ptr": "*bf16",
    "branch_ptr": "*bf16",
    "branch_scale_ptr": "*fp32",
    "weight_ptr": "*fp32",
    "bias_ptr": "*fp32",
    "sum_ptr": "*bf16",
    "y_ptr": "*bf16",
    "mean_ptr": "*fp32",
    "rstd_ptr": "*fp32",
    "num_rows": "i32",
    "rows_per_image": "i32",
    "eps": "fp32",
}
BACKWARD = {
    "dsum_ptr": "*bf16",
    "dnormed_ptr": "*bf16",
    "sum_ptr": "*bf16",
    "weight_ptr": "*fp32",
    "mean_ptr": "*fp32",
    "rstd_ptr": "*fp32",
    "branch_scale_ptr": "*fp32",
    "dx_ptr": "*bf16",
    "dbranch_ptr": "*bf16",
    "parts_ptr": "*fp32",
    "num_rows": "i32",
    "rows_per_image": "i32",
}


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("within the tolerance") for line in lines) == 12
    assert lines[-2:] == ["sums agree", "opcheck passed"]


# every width that the table tells apart, and those of ViT-S and ViT-B on every GPU; with a scale, which needs most
@pytest.mark.parametrize(
    "capability, width",
    [(capability, width) for capability in (80, 90, 100) for width in (384, 768)]
    + [(90, width) for width in (192, 1280, 4096, 8192)],
)
def test_compiled_ahead_of_time_does_not_spill(capability, width):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels import layer_norm_triton
    from misplace.kernels.testing.ahead_of_time import resources

    sizes = layer_norm_triton.launch_sizes(width)
    constants = dict(WIDTH=width, HAS_SCALE=True, ROWS=sizes.rows, BLOCK=sizes.block)
    for kernel, types, flags in (
        (layer_norm_triton.forward_kernel, FORWARD, dict(HAS_BRANCH=True, SAVE=True)),
        (layer_norm_triton.backward_kernel, BACKWARD, dict(HAS_DSUM=True)),
    ):
        flags |= constants
        signature = types | dict.fromkeys(flags, "constexpr")
        divisible = [name for name in types if name.endswith("_ptr")]
        used = resources(
            kernel, signature, flags, capability=capability, num_warps=sizes.num_warps, divisible=divisible
        )
        print(f"{kernel.__name__} D={width} sm_{capability} warps={sizes.num_warps}: {used}")
        assert used.stack == 0, used
