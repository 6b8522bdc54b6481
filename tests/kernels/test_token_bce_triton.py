"""The Triton kernels without a GPU: interpreted against the oracle, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).with_name("interpreted_token_bce.py")
ROWS = {
    "tokens_ptr": "*bf16",
    "image_stride": "i64",
    "token_stride": "i32",
    "norm_weight_ptr": "*fp32",
    "norm_bias_ptr": "*fp32",
    "weight_ptr": "*fp32",
    "bias_ptr": "*fp32",
    "target_ptr": "*i1",
    "token_weight_ptr": "*fp32",
    "weight_sum_ptr": "*fp32",
    "logits_ptr": "*fp32",
    "d_tokens_ptr": "*bf16",
    "direction_ptr": "*fp32",
    "totals_ptr": "*fp32",
    "num_rows": "i32",
    "kept": "i32",
    "eps": "fp32",
}
FINISH = {
    "direction_ptr": "*fp32",
    "totals_ptr": "*fp32",
    "norm_weight_ptr": "*fp32",
    "norm_bias_ptr": "*fp32",
    "weight_ptr": "*fp32",
    "weight_sum_ptr": "*fp32",
    "loss_ptr": "*fp32",
    "d_parameters_ptr": "*fp32",
    "num_programs": "i32",
    "num_rows": "i32",
}
RESCALE = {"ptr": "*bf16", "scale_ptr": "*fp32", "size": "i64"}


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("within the tolerance") for line in lines) == 9
    assert lines[-1] == "opcheck passed"


def require_no_spill(kernel, signature, constants, *, capability, num_warps):
    from misplace.kernels.testing.ahead_of_time import resources

    signature = signature | dict.fromkeys(constants, "constexpr")
    used = resources(kernel, signature, constants, capability=capability, num_warps=num_warps)
    print(f"{kernel.__name__} {constants} sm_{capability} warps={num_warps}: {used}")
    assert used.stack == 0, used


# 384 is ViT-S, 8192 the widest; the weighted kernel with gradients holds most registers
@pytest.mark.parametrize(
    "capability, width, gradients",
    [(capability, width, True) for capability in (80, 90, 100) for width in (384, 768)]
    + [(90, 192, True), (90, 1280, True), (90, 8192, True), (90, 384, False)],
)
def test_rows_compiled_ahead_of_time_do_not_spill(capability, width, gradients):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.token_bce.triton import launch_sizes, token_bce_kernel

    sizes = launch_sizes(width)
    constants = dict(OFFSET=1, WIDTH=width, WEIGHTED=True, GRADIENTS=gradients, ROWS=sizes.rows, BLOCK=sizes.block)
    require_no_spill(token_bce_kernel, ROWS, constants, capability=capability, num_warps=sizes.num_warps)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_others_compiled_ahead_of_time_do_not_spill(capability):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.token_bce import triton

    constants = dict(WIDTH=384, WEIGHTED=True, GRADIENTS=True, PROGRAMS=2048, **triton.FINISH)
    require_no_spill(triton.finish_kernel, FINISH, constants, capability=capability, num_warps=triton.FINISH_WARPS)
    constants = dict(BLOCK=triton.RESCALE_BLOCK)
    require_no_spill(triton.rescale_kernel, RESCALE, constants, capability=capability, num_warps=triton.RESCALE_WARPS)
