"""Maps the top-level folders into the namespace `misplace` and builds its extension, misplace.kernels._C."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

from setuptools import setup

ROOT = pathlib.Path(__file__).resolve().parent
FOLDERS = ("kernels", "engine", "bench")
# what nvcc is asked for, where it knows it; compute_80 is compiled by the driver for any other card
CUDA_ARCHS = {"sm_80": "[sm_80,compute_80]", "sm_90a": "sm_90a", "sm_100": "sm_100"}

REQUIRES = [
    "torch>=2.11", "triton>=3.6; sys_platform == 'linux'", "numpy", "pillow>=12.2", "tyro>=1.0", "rich",
    "tensorboard", "matplotlib", "safetensors", "pyyaml",
]  # fmt: skip
EXTRAS = {
    "gpu": ["xformers>=0.0.35", "nvidia-dali-cuda130>=2.4; sys_platform == 'linux'"],
    "test": [
        "pytest", "pytest-xdist", "pytest-timeout", "pytest-instafail", "hypothesis", "scikit-learn", "timm",
        "torchvision", "ruff", "import-linter", "ninja", "pybind11",
        "webdataset", "braceexpand", "nvidia-dali-cuda130>=2.4; sys_platform == 'linux'",
    ],
}  # fmt: skip
DATA_FILES = {"engine": "report/*.*", "bench": "*.csv", "kernels.attention": "*.csv"}


def namespace():
    """Every folder with an __init__.py under FOLDERS, as misplace.<folder>..."""
    folders = [i.parent.relative_to(ROOT) for top in FOLDERS for i in sorted((ROOT / top).rglob("__init__.py"))]
    return {".".join(("misplace", *folder.parts)): folder.as_posix() for folder in folders}


def missing_for_extension():
    """What the extension needs and this machine lacks; empty when it can be built."""
    if importlib.util.find_spec("ninja"):  # counts too when the environment it is installed in is not activated
        import ninja

        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), ninja.BIN_DIR])
    has_headers = pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()
    needs = {
        "a C++ compiler (g++ or clang++)": any(shutil.which(name) for name in ("c++", "g++", "clang++")),
        "the Python headers (on Debian: apt install python3-dev)": has_headers,
        "torch (install it first, then install with --no-build-isolation)": importlib.util.find_spec("torch"),
        "ninja (pip install ninja)": shutil.which("ninja"),
    }
    return [what for what, found in needs.items() if not found]


def cuda_archs(torch_cuda, cuda_home):
    """The architectures to compile csrc/cuda for; none for a CPU torch, or with a line where nvcc is not torch's."""
    if torch_cuda is None:
        return []
    nvcc = os.path.join(cuda_home or "", "bin", "nvcc")
    ask = lambda option: subprocess.run([nvcc, option], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)", ask("--version"))[1] if os.path.exists(nvcc) else "missing"
    if release != torch_cuda.split(".")[0]:
        print(f"misplace: building without CUDA kernels; torch has CUDA {torch_cuda}, nvcc: {release}", file=sys.stderr)
        return []
    known = ask("--list-gpu-code").split()
    return [arch for arch in CUDA_ARCHS if arch.rstrip("a") in known]


def extension():
    """The arguments that build misplace.kernels._C, or none of them with a line that says what is missing."""
    if missing := missing_for_extension():
        print(f"misplace: building without native kernels; missing: {', '.join(missing)}", file=sys.stderr)
        return {}
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    csrc, archs = ROOT / "csrc", cuda_archs(torch.version.cuda, CUDA_HOME)
    sources = [*csrc.glob("*.cpp"), *csrc.glob("cpu/*.cpp"), *(csrc.glob("cuda/*.c*") if archs else ())]
    cxx = ["-O3", "-std=c++20", "-fopenmp", "-fvisibility=hidden", "-Wall"]
    nvcc = ["-O3", "-std=c++20", *(f"-gencode=arch={a.replace('sm', 'compute')},code={CUDA_ARCHS[a]}" for a in archs)]
    module = (CUDAExtension if archs else CppExtension)(
        "misplace.kernels._C",
        sorted(path.relative_to(ROOT).as_posix() for path in sources),
        include_dirs=[str(csrc)],
        depends=[p.relative_to(ROOT).as_posix() for p in sorted(csrc.rglob("*.*")) if p.suffix in (".h", ".inc")],
        define_macros=[("MISPLACE_CUDA_ARCHS", ",".join(archs))] if archs else [],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
    )

    class KeepObjects(BuildExtension):
        """pip's folder for objects is gone after an install: kept here, only what changed is compiled again."""

        def finalize_options(self):
            super().finalize_options()
            self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}")

    return {"ext_modules": [module], "cmdclass": {"build_ext": KeepObjects}}


setup(
    packages=list(namespace()),
    package_dir=namespace(),
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    package_data={f"misplace.{package}": [files] for package, files in DATA_FILES.items()},
    **extension(),
)
