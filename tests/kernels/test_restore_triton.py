"""The Triton kernels of restore without a GPU: interpreted against the oracle, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).with_name("interpreted_restore.py")
IN_DTYPE = ("tokens_ptr", "out_ptr", "gradient_ptr", "d_tokens_ptr")


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("within the tolerance") for line in lines) == 18
    assert lines[-1] == "opcheck passed"


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kept, dtype", [(49, "*bf16"), (1024, "*fp32")])
def test_compiled_ahead_of_time_does_not_spill(capability, kept, dtype):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.restore import triton
    from misplace.kernels.testing.ahead_of_time import resources

    constants = triton.launch_sizes(kept)
    num_warps = constants.pop("num_warps")
    for kernel in (triton.forward_kernel, triton.backward_kernel):
        pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
        types = {name: dtype if name in IN_DTYPE else "*i32" if name == "src_ptr" else "*fp32" for name in pointers}
        signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
        divisible = [*pointers, "width"]
        used = resources(kernel, signature, constants, capability=capability, num_warps=num_warps, divisible=divisible)
        print(f"restore {kernel.__name__} K={kept} {dtype} sm_{capability}: {used}")
        assert used.stack == 0, used
