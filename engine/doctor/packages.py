"""Checks of the Python packages, read from their metadata: nothing here imports xformers, DALI or Triton."""

import importlib.metadata
import platform
import re
import sys

import torch

from misplace.kernels import cpu_paths
from misplace.kernels.impl import Impl, why_unavailable

from .finding import Finding, note, ok, problem

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def version_of(package: str) -> str | None:
    """The installed version of a distribution; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.17.0rc1" -> (1, 17, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", version)[0].split("."))


def python() -> Finding:
    return ok("Python", f"{platform.python_version()} in {sys.prefix}")


def pytorch() -> Finding:
    version = torch.__version__
    if release(version) < (2, 11):
        return problem("PyTorch", f"{version}, below 2.11", "pip install 'torch>=2.11'")
    return ok("PyTorch", f"{version}, CUDA {torch.version.cuda or 'not in this build'}")


def torchvision() -> Finding:
    """Built for CUDA beside a CPU torch it cannot register its operators, and timm cannot be imported."""
    version = version_of("torchvision")
    if version is None:
        return ok("torchvision", "not installed (only the tests and the comparisons use it)")
    try:
        __import__("torchvision")
    except (ImportError, RuntimeError) as error:
        return note(
            "torchvision",
            f"{version} does not load beside torch {torch.__version__} ({error}); timm fails with it",
            "install the torchvision of the same build as torch (both CPU or both CUDA, from one index)",
        )
    return ok("torchvision", version)


def triton() -> Finding:
    version = version_of("triton")
    if version is None:
        mend = "pip install 'triton>=3.6' (Linux only)"
        return note("Triton", "not installed; the fused GPU kernels are not available", mend)
    if release(version) < (3, 6):
        return problem("Triton", f"{version}, below 3.6", "pip install 'triton>=3.6'")
    return ok("Triton", version)


def xformers() -> Finding:
    version = version_of("xformers")
    if version is None:
        return ok("xformers", "not installed (optional: one more attention to compare with)")
    cuda = torch.version.cuda
    if cuda is None:
        mend = "pip uninstall xformers, or install a CUDA build of torch"
        return note("xformers", f"{version} beside a torch without CUDA: it cannot run", mend)
    if release(cuda) >= (13,):
        return note(
            "xformers",
            f"{version} beside CUDA {cuda}: it may warn that its extensions cannot be loaded",
            "harmless unless impl=xformers is asked for; then install the xformers built for this CUDA",
        )
    return ok("xformers", f"{version} beside CUDA {cuda}")


def dali() -> Finding:
    real = {name: version_of(name) for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120")}
    stub = version_of("nvidia-dali")
    if version := real["nvidia-dali-cuda130"]:
        return ok("DALI", f"nvidia-dali-cuda130 {version}")
    if stub is not None:
        return problem(
            "DALI",
            f"'nvidia-dali' {stub} from PyPI is a placeholder without code",
            "pip uninstall nvidia-dali && pip install nvidia-dali-cuda130",
        )
    if version := real["nvidia-dali-cuda120"]:
        mend = "pip uninstall nvidia-dali-cuda120 && pip install nvidia-dali-cuda130"
        return note("DALI", f"nvidia-dali-cuda120 {version} is built for CUDA 12", mend)
    if torch.cuda.is_available():
        mend = "pip install nvidia-dali-cuda130 (not 'nvidia-dali', which is a placeholder)"
        return note("DALI", "not installed; the Pillow pipeline will feed the GPU", mend)
    return ok("DALI", "not installed, and not needed without a GPU")


def kymatio() -> Finding:
    version, scipy = version_of("kymatio"), version_of("scipy")
    if version is None:
        return ok("kymatio", "not installed (optional: the scattering extra)")
    if release(version) <= (0, 3, 0) and scipy is not None and release(scipy) >= (1, 17):
        return problem(
            "kymatio",
            f"{version} cannot be imported with scipy {scipy}: it uses a function that scipy 1.17 removed",
            "pip install 'scipy<1.17'",
        )
    return ok("kymatio", f"{version} with scipy {scipy}")


def pillow() -> Finding:
    version = version_of("pillow")
    if version is None or release(version) < (12, 2):
        return problem("Pillow", f"{version or 'not installed'}, below 12.2", "pip install 'pillow>=12.2'")
    return ok("Pillow", version)


def native_extension() -> Finding:
    """misplace.kernels._C: built or not, and why not."""
    reason = why_unavailable(Impl.NATIVE, torch.device("cpu"))
    if reason:
        return note("native kernels", reason, f"put g++ and ninja on PATH, then {REBUILD}")
    return ok("native kernels", "misplace.kernels._C is built and loads")


def native_paths() -> Finding:
    """Which instructions the native kernels take on this CPU."""
    try:
        paths = cpu_paths()
    except NotImplementedError:
        return problem("CPU paths", "misplace.kernels._C was built from older sources", REBUILD)
    return ok("CPU paths", "; ".join(f"{op}: {path}" for op, path in paths.items()) or "none: no native kernels")


CHECKS = (python, pytorch, torchvision, triton, xformers, dali, kymatio, pillow, native_extension, native_paths)
