"""What a .cu file's kernels cost on GPUs that are not here: compiled by nvcc for each, as its assembler reports it.

`python -m misplace.kernels.testing.nvcc FILE ...` prints the table.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

ARCHS = ("sm_80", "sm_90a", "sm_100")
# as the build compiles kernels: torch's extension takes the implicit conversions of 16-bit types away
FLAGS = (
    "-O3",
    "-std=c++20",
    "--expt-relaxed-constexpr",
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
)
# the CPU wheel carries torch's CUDA headers, but not the generated one that names the build's options
HOST_FLAGS = ("-std=c++20", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """Per thread: registers, bytes of stack, of them spilled (stored and loaded). Per block: shared bytes."""

    name: str
    arch: str
    registers: int
    stack: int
    spilled: int
    shared: int


@functools.cache
def find_nvcc() -> str | None:
    """The nvcc of CUDA_HOME, of PATH, or of the usual place; None without any."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, candidates)), None)


def why_not() -> str | None:
    """None where .cu files can be compiled, otherwise one line with the reason."""
    if find_nvcc() is None:
        return "no nvcc: not in CUDA_HOME, on PATH or in /usr/local/cuda"
    return None if shutil.which("g++") or shutil.which("clang++") else "nvcc needs a host compiler: no g++ or clang++"


def torch_headers() -> list[str]:
    """-I for torch's, which host code includes and kernels do not: they cost half a minute of nvcc a file."""
    headers = Path(torch.__file__).parent / "include"
    return [f"-I{path}" for path in (headers, headers / "torch" / "csrc" / "api" / "include")]


def compile_kernels(source: Path, csrc: Path, archs: tuple[str, ...] = ARCHS) -> list[Kernel]:
    """Compiles one .cu file to an object in one call of nvcc; RuntimeError with what it says where it cannot.

    csrc: the folder that its own headers are named from.
    """
    gencode = [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in archs]
    with tempfile.TemporaryDirectory() as scratch:
        target = ["-Xptxas", "-v", "-c", str(source), "-o", os.path.join(scratch, "kernels.o")]
        command = [find_nvcc(), *FLAGS, f"-I{csrc}", *gencode, *target]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc {source}:\n{done.stdout}{done.stderr}")
    return parse(done.stdout + done.stderr)


def parse(report: str) -> list[Kernel]:
    """The kernels in what `nvcc -Xptxas -v` prints, one entry per kernel and architecture."""
    found = []
    for entry in ENTRY.finditer(report):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        found.append(
            Kernel(
                name=_demangled(entry["name"]),
                arch=entry["arch"],
                registers=int(entry["registers"]),
                stack=int(entry["stack"]),
                spilled=int(entry["stores"]) + int(entry["loads"]),
                shared=int(shared[1]) if shared else 0,
            )
        )
    return found


@functools.cache
def _demangled(name: str) -> str:
    tool = shutil.which("c++filt")
    if tool is None:
        return name
    return subprocess.run([tool, name], capture_output=True, text=True, check=True).stdout.strip()


def main(files: list[str]) -> int:
    """0 when no kernel of the files spills."""
    if reason := why_not():
        print(f"not compiled: {reason}")
        return 0
    spilled = 0
    for source in map(Path, files):
        for kernel in compile_kernels(source, source.parents[1]):
            spilled += kernel.spilled + kernel.stack
            print(f"{source.name} {kernel.arch}: {kernel._asdict()}")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
