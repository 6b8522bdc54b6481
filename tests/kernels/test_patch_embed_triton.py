"""The Triton kernels without a GPU: interpreted against the fp64 oracle, and compiled for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = Path(__file__).with_name("interpreted_patch_embed.py")
BF16, FP32 = torch.bfloat16, torch.float32
VIT = (384, 16, 3, 198)  # D, p, C, rows of the table's gradient
SMALL = (192, 4, 1, 51)
# beside every pointer, what a launch finds to be divisible by 16 where the pixels are aligned
ALIGNED = ("image_stride", "row_stride", "dim", "tokens_each", "rows_each")
POINTERS = {"images_ptr": "*u8", "src_ptr": "*i32", "pos_ptr": "*i32"}
IN_DTYPE = ("weight_ptr", "out_ptr", "gradient_ptr")


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("close") for line in lines) == 11
    assert lines[-1] == "opcheck passed"


def launch(name, dtype, dim, patch_size, channels, rows, is_aligned):
    """The kernel, its constants and its warps, as the launchers choose them."""
    from misplace.kernels.patch_embed import triton as forward
    from misplace.kernels.patch_embed import triton_backward as backward

    pixels = patch_size**2 * channels
    kernel = getattr(forward if name == "forward" else backward, f"{name}_kernel")
    names, sizes = {
        "forward": ("TDP", forward.forward_sizes(dim, pixels, dtype, is_aligned)),
        "weight": ("TDP", backward.weight_sizes(dim, pixels, dtype, is_aligned)),
        "table": ("TDR", backward.table_sizes(dim, rows, dtype)),
        "image": ("LKDP", backward.image_sizes(dim, pixels, dtype)),
    }[name]
    constants = {f"BLOCK_{letter}": size for letter, size in zip(names, sizes)}
    if name == "table":
        constants["HAS_TABLE"] = True
    else:
        constants |= {"PATCH": patch_size, "CHANNELS": channels, "INTERLEAVED": channels > 1}
    if name == "forward":
        constants["HAS_UNKNOWN"] = True
    return kernel, constants, sizes[-1]


def signature_of(kernel, constants, dtype, name):
    """Types of all arguments; sizes and strides are int32, normalisation fp32."""
    in_dtype = "*bf16" if dtype == BF16 else "*fp32"
    types = {}
    for argument in kernel.arg_names:
        if argument in constants:
            types[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            types[argument] = in_dtype if argument in IN_DTYPE else POINTERS.get(argument, "*fp32")
        else:
            types[argument] = "fp32" if argument[:-1] in ("scale", "shift") else "i32"
    return types | ({"images_ptr": "*fp32"} if name == "image" else {})


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    "name, dtype, sizes, is_aligned",
    [
        ("forward", BF16, VIT, True),
        ("weight", BF16, VIT, True),
        ("table", BF16, VIT, True),
        ("image", BF16, VIT, True),
        ("forward", BF16, SMALL, False),
        ("weight", BF16, SMALL, False),
        ("forward", FP32, SMALL, False),
    ],
)
def test_compiled_ahead_of_time_does_not_spill(capability, name, dtype, sizes, is_aligned):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.testing.ahead_of_time import resources

    kernel, constants, num_warps = launch(name, dtype, *sizes, is_aligned)
    used = resources(
        kernel,
        signature_of(kernel, constants, dtype, name),
        constants,
        capability=capability,
        num_warps=num_warps,
        divisible=[n for n in kernel.arg_names if n.endswith("_ptr") or n in ALIGNED] if is_aligned else (),
    )
    print(f"patch_embed {name} {dtype} {sizes} sm_{capability} warps={num_warps}: {used}")
    assert used.stack == 0, used
