"""Maps the top-level folders into the namespace `misplace` and builds its extension, misplace.kernels._C."""

import importlib.util
import os
import pathlib
import shutil
import sys
import sysconfig

from setuptools import setup

ROOT = pathlib.Path(__file__).parent
FOLDERS = ("kernels", "engine", "bench")

REQUIRES = [
    "torch>=2.11",
    "triton>=3.6; sys_platform == 'linux'",
    "numpy",
    "pillow>=12.2",
    "tyro>=1.0",
    "rich",
    "tensorboard",
    "matplotlib",
    "safetensors",
    "pyyaml",
]
EXTRAS = {
    "gpu": ["xformers>=0.0.35", "nvidia-dali-cuda130>=2.4; sys_platform == 'linux'"],
    "test": [
        "pytest",
        "pytest-xdist",
        "hypothesis",
        "scikit-learn",
        "timm",
        "torchvision",
        "ruff",
        "import-linter",
        "ninja",
        "pybind11",
    ],
}


def namespace():
    """Every folder with an __init__.py under FOLDERS, as misplace.<folder>..."""
    packages, folders = [], {}
    for top in FOLDERS:
        for init in sorted((ROOT / top).rglob("__init__.py")):
            folder = init.parent.relative_to(ROOT)
            name = ".".join(("misplace", *folder.parts))
            packages.append(name)
            folders[name] = folder.as_posix()
    return packages, folders


def put_ninja_on_path():
    """The ninja of `pip install ninja` counts too when its environment is not activated."""
    if importlib.util.find_spec("ninja"):
        import ninja

        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), ninja.BIN_DIR])


def missing_for_extension():
    """What the extension needs and this machine lacks; empty when it can be built."""
    put_ninja_on_path()
    missing = []
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        missing.append("a C++ compiler (g++ or clang++)")
    if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("the Python headers (on Debian: apt install python3-dev)")
    if not importlib.util.find_spec("torch"):
        missing.append("torch (install it first, then install with --no-build-isolation)")
    if not shutil.which("ninja"):
        missing.append("ninja (pip install ninja)")
    return missing


def extension():
    """The arguments that build misplace.kernels._C, or none of them with a line that says what is missing."""
    missing = missing_for_extension()
    if missing:
        print(f"misplace: building without native kernels; missing: {', '.join(missing)}", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    sources = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "csrc").rglob("*.cpp"))]
    module = CppExtension(
        "misplace.kernels._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        depends=[p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "csrc").rglob("*.h"))],
        extra_compile_args=["-O3", "-std=c++20", "-fopenmp", "-fvisibility=hidden", "-Wall"],
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


packages, package_dir = namespace()
setup(
    packages=packages,
    package_dir=package_dir,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    package_data={"misplace.engine": ["report/*.html", "report/*.css"], "misplace.bench": ["*.csv"]},
    **extension(),
)
