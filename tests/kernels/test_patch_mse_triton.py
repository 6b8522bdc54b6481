"""The Triton kernel of patch_mse without a GPU: interpreted against the oracle, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).with_name("interpreted_patch_mse.py")
TYPES = {"images_ptr": "*u8", "index_ptr": "*i32", "parts_ptr": "*fp32", "eps": "fp32", "share": "fp32"}
STRIDES = ("image_stride", "row_stride", "prediction_image_stride", "prediction_stride")


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("within the tolerance") for line in lines) == 18
    assert lines[-1] == "opcheck passed"


def signature_of(kernel, constants, dtype):
    """Types of all arguments; sizes and strides are int32, normalisation fp32."""
    types = dict.fromkeys(("prediction_ptr", "d_prediction_ptr"), dtype) | TYPES | dict.fromkeys(constants, "constexpr")
    return {
        name: types.get(name, "fp32" if name[:-1] in ("scale", "shift") else "i32") for name in kernel.arg_names
    }  # fmt: skip


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    "patch_size, channels, dtype",
    [(16, 3, "*bf16"), (4, 1, "*bf16"), (3, 1, "*fp32"), (32, 3, "*bf16")],
)
def test_compiled_ahead_of_time_does_not_spill(capability, patch_size, channels, dtype):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.patch_mse import triton
    from misplace.kernels.testing.ahead_of_time import resources

    kernel = triton.patch_mse_kernel
    patches, block = triton.launch_sizes(patch_size**2 * channels)
    constants = dict(PATCH=patch_size, CHANNELS=channels, NORMALISE=True, GRADIENT=True, T=patches, BLOCK=block)
    divisible = [name for name in kernel.arg_names if name.endswith("_ptr")]
    used = resources(
        kernel,
        signature_of(kernel, constants, dtype),
        constants,
        capability=capability,
        num_warps=triton.NUM_WARPS,
        divisible=[*divisible, *(STRIDES if patch_size % 16 == 0 else ())],
    )
    print(f"patch_mse p={patch_size} C={channels} {dtype} sm_{capability}: {used}")
    assert used.stack == 0, used
