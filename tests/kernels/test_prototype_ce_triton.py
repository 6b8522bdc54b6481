"""The Triton kernels without a GPU: interpreted against the oracle, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = Path(__file__).with_name("interpreted_prototype_ce.py")
COUNTS = ("count", "num_prototypes", "rows", "teacher_rows", "splits", "views", "teacher_views", "batch")
NUMBERS = dict.fromkeys((*COUNTS, "tiles_per_split"), "i32") | dict.fromkeys(("scale", "gradient_scale"), "fp32")


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("within the tolerance") for line in lines) == 11
    assert lines[-1] == "opcheck passed"


def require_no_spill(kernel, features, narrow, constants, *, capability, num_warps, num_stages=3):
    """narrow: the pointers to the features' dtype; the others are to fp32."""
    from misplace.kernels.testing.ahead_of_time import resources

    signature = {name: f"*{features if name in narrow else 'fp32'}" for name in kernel.arg_names}
    signature |= {name: kind for name, kind in NUMBERS.items() if name in signature}
    signature |= dict.fromkeys(constants, "constexpr")
    divisible = [name for name in kernel.arg_names if name.endswith("_ptr")]
    used = resources(
        kernel, signature, constants, capability=capability, num_warps=num_warps, num_stages=num_stages,
        divisible=divisible,
    )  # fmt: skip
    print(f"{kernel.__name__} {features} {constants} sm_{capability} warps={num_warps}: {used}")
    assert used.stack == 0, used
    assert used.shared <= {80: 163, 90: 227, 100: 227}[capability] * 1024, used


ROWS = {"rows_ptr", "prototypes_ptr", "values_ptr"}
PROTOTYPES = {"student_ptr", "teacher_ptr", "partners_ptr", "unit_ptr", "teacher_unit_ptr"}


@pytest.mark.parametrize("features, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
@pytest.mark.parametrize("capability, width", [(80, 256), (90, 256), (100, 256), (90, 128)])
def test_tiles_compiled_ahead_of_time_do_not_spill(capability, width, features, dtype):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.prototype_ce.triton import launch_sizes
    from misplace.kernels.prototype_ce.triton_kernels import prototypes_kernel, rows_kernel

    sizes = launch_sizes(width, dtype)
    launch = dict(capability=capability, num_warps=sizes.num_warps, num_stages=sizes.num_stages)
    constants = dict(WIDTH=width, BLOCK=width, ROWS=sizes.rows, TILE=sizes.tile)
    for teacher in (True, False):
        require_no_spill(rows_kernel, features, ROWS, constants | dict(TEACHER=teacher, SUMS=True), **launch)
    require_no_spill(prototypes_kernel, features, PROTOTYPES, constants, **launch)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_others_compiled_ahead_of_time_do_not_spill(capability):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.prototype_ce import triton, triton_kernels

    constants = dict(WIDTH=256, BLOCK=256)
    launch = dict(capability=capability, num_warps=triton.NORMALISE_WARPS)
    require_no_spill(triton_kernels.normalise_kernel, "bf16", {"unit_ptr"}, constants | triton.NORMALISE, **launch)
    constants |= dict(SPLITS=triton.MOST_SPLITS)
    launch = dict(capability=capability, num_warps=triton.FINISH_WARPS)
    require_no_spill(triton_kernels.finish_teacher_kernel, "bf16", {"student_ptr", "partners_ptr"}, constants, **launch)
    narrow = {"unit_ptr", "student_ptr", "d_student_ptr"}
    constants |= dict(GRADIENT=True)
    require_no_spill(triton_kernels.finish_student_kernel, "bf16", narrow, constants, **launch)
