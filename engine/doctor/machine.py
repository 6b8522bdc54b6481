"""Checks of the machine: devices, processor, tools, space, data."""

import os
import shutil
from pathlib import Path

import torch

from misplace.engine.data.fashion_mnist import DEBIAN_FOLDER
from misplace.engine.data.poses.source import default_root

from .finding import Finding, note, ok, problem

GIB = 2**30
LEAST_FREE = 5 * GIB
LEAST_SHARED_MEMORY = GIB
CPU_INFO = Path("/proc/cpuinfo")
SHARED_MEMORY = Path("/dev/shm")


def devices() -> Finding:
    """The CUDA devices, and whether they compute in bf16."""
    if not torch.cuda.is_available():
        if torch.version.cuda:
            mend = "look at nvidia-smi: the driver must be as new as this CUDA"
            return note("GPU", f"none usable, though torch is built for CUDA {torch.version.cuda}", mend)
        return note("GPU", "none: runs on the CPU", "for a GPU, install a CUDA build of torch")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        mend = "an Ampere GPU (sm_80) or newer, or --run.precision fp32"
        return note("GPU", f"{', '.join(names)}: no bf16 in hardware", mend)
    return ok("GPU", f"{', '.join(names)}; bf16")


def cpu_flags() -> set[str]:
    """The processor's feature flags; empty where the system does not tell."""
    if not CPU_INFO.is_file():
        return set()
    for line in CPU_INFO.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def processor() -> Finding:
    flags = cpu_flags()
    have = {
        "AMX bf16": "amx_bf16" in flags,
        "AVX-512 bf16": "avx512_bf16" in flags,
        "AVX-512": "avx512f" in flags,
        "AVX2": "avx2" in flags,
    }
    listed = ", ".join(name for name, there in have.items() if there) or "no vector features reported"
    if not (have["AMX bf16"] or have["AVX-512 bf16"]):
        return note("processor", f"{listed}: bf16 is emulated", "on the CPU, --run.precision fp32 is faster here")
    return ok("processor", listed)


def threads() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = torch.get_num_threads()
    message = f"{used} PyTorch threads on {usable} usable cores"
    if used > usable:
        return note("threads", message, f"set OMP_NUM_THREADS={usable}")
    return ok("threads", message)


def build_tools() -> Finding:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    missing = [] if compiler else ["g++"]
    missing += [tool for tool in ("ninja",) if not shutil.which(tool)]
    nvcc = "nvcc found" if shutil.which("nvcc") else "no nvcc (needed only for CUDA sources)"
    if missing:
        mend = "apt install g++ (or clang++); pip install ninja"
        return note("build tools", f"{' and '.join(missing)} not on PATH; {nvcc}", mend)
    return ok("build tools", f"{Path(compiler).name} and ninja; {nvcc}")


def disk_space() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    message = f"{free / GIB:.1f} GiB free in {Path.cwd()}"
    if free < LEAST_FREE:
        return note("disk space", message, "checkpoints may not fit: free some, or point --out elsewhere")
    return ok("disk space", message)


def shared_memory() -> Finding:
    """Loader workers hand batches over through /dev/shm; a container gives 64 MiB unless told."""
    if not SHARED_MEMORY.is_dir():
        return ok("shared memory", f"no {SHARED_MEMORY} on this system")
    total = shutil.disk_usage(SHARED_MEMORY).total
    message = f"{total / GIB:.2f} GiB in {SHARED_MEMORY}"
    if total < LEAST_SHARED_MEMORY:
        mend = "docker run --shm-size=8g, or --data.workers 0"
        return note("shared memory", f"{message}: loader workers may die with a bus error", mend)
    return ok("shared memory", message)


def data_folder() -> Path:
    """Where `poses` is rendered to."""
    return default_root().parent


def data_folder_writable() -> Finding:
    folder = data_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        mend = "set MISPLACE_DATA to a folder that can be written"
        return problem("data folder", f"{folder} cannot be written", mend)
    return ok("data folder", f"{folder} can be written")


def fashion_mnist() -> Finding:
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    there = [n for n in names if (DEBIAN_FOLDER / n).is_file() or (DEBIAN_FOLDER / f"{n}.gz").is_file()]
    if len(there) == len(names):
        return ok("Fashion-MNIST", f"in {DEBIAN_FOLDER}")
    mend = "apt install dataset-fashion-mnist (Debian, Ubuntu)"
    return note("Fashion-MNIST", f"not in {DEBIAN_FOLDER}: --data fashion-mnist cannot run", mend)


CHECKS = (
    devices,
    processor,
    threads,
    build_tools,
    disk_space,
    shared_memory,
    data_folder_writable,
    fashion_mnist,
)
