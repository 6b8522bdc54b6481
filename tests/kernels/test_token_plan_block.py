"""The GPU's algorithm (csrc/shared/token_plan_block.h) run on the CPU, threads one after another in several orders."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from misplace.kernels.testing.plans import DROP_RATES, INDICES, NUM_PATCHES, WRONG_RATES
from misplace.kernels.token_plan import TokenPlan, num_kept, token_plan

HERE = Path(__file__).resolve().parent
COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
WARP = 32
NAME = dict(seed=2**64 - 3, epoch=2**32 - 2, view=255)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ or clang++ to compile the shared headers with")


@pytest.fixture(scope="module")
def run_block(tmp_path_factory):
    """token_plan_block.cpp's function."""
    library = tmp_path_factory.mktemp("block") / "block.so"
    flags = ["-std=c++20", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{HERE.parents[1] / 'csrc'}"]
    subprocess.run([COMPILER, *flags, str(HERE / "token_plan_block.cpp"), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).run_block
    sizes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int]
    name = [ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64]
    function.argtypes = [*sizes, *name, ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * 3]
    function.restype = None
    return function


def by_blocks(run_block, num_patches: int, drop_rate: float, wrong_rate: float, turn: int) -> TokenPlan:
    """A plan of INDICES; `turn` orders the threads."""
    kept = num_kept(num_patches, drop_rate)
    threads = (num_patches + WARP - 1) // WARP * WARP
    src = torch.full((len(INDICES), kept), -7, dtype=torch.int32)
    plan = TokenPlan(src, src.clone(), torch.ones_like(src, dtype=torch.bool))
    for row, index in enumerate(INDICES):
        out = [part[row].data_ptr() for part in plan]
        run_block(index, num_patches, kept, *NAME.values(), round(wrong_rate * 2**32), threads, turn, *out)
    return plan


@pytest.mark.parametrize("num_patches", [1, 2, 3, 31, 32, 33, *NUM_PATCHES, 1023, 1024])
def test_equals_the_reference_whatever_the_order_of_threads(run_block, num_patches):
    for drop_rate in DROP_RATES:
        if int(num_patches * (1 - drop_rate) + 1e-6) == 0:
            continue
        for wrong_rate in WRONG_RATES:
            sizes = dict(num_patches=num_patches, drop_rate=drop_rate, wrong_rate=wrong_rate)
            expected = token_plan(torch.tensor(INDICES), **sizes, **NAME, impl="reference")
            for turn in (1, -1, 13):  # one after another, backwards, and far apart
                plan = by_blocks(run_block, num_patches, drop_rate, wrong_rate, turn)
                assert all(torch.equal(a, b) for a, b in zip(plan, expected, strict=True)), (sizes, turn)


@pytest.mark.gpu
def test_the_extension_of_a_gpu_machine_has_the_kernel():
    """On a GPU the comparison is that of test_token_plan.py; here it may not be left out in silence."""
    plan = token_plan(torch.tensor(INDICES, device="cuda"), num_patches=196, drop_rate=0.5, wrong_rate=0.2, **NAME,
                      impl="native")  # fmt: skip
    expected = token_plan(torch.tensor(INDICES), num_patches=196, drop_rate=0.5, wrong_rate=0.2, **NAME)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(plan, expected, strict=True))
