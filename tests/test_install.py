"""The package installs into a fresh environment: as a wheel and editable, with a C++ compiler and without."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]
COPIED = ("kernels", "engine", "bench", "csrc", "pyproject.toml", "setup.py", "README.md", "LICENSE")
COMPILERS = ("c++", "g++", "clang++")
ROOT = Path("/")  # where no folder of the checkout could be imported by accident
GENERIC = ("kernels", "engine", "bench", "csrc", "tests")

has_compiler = any(shutil.which(name) for name in COMPILERS)


class Environment(NamedTuple):
    """A fresh virtual environment that sees the packages of this one, but not its misplace."""

    folder: Path
    site: Path
    log: str  # what pip said while it installed misplace

    def run(self, code: str) -> str:
        """What a program prints, started in / with this environment's Python."""
        command = [self.folder / "bin" / "python", "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The checkout without what was built in it."""
    root = tmp_path_factory.mktemp("checkout")
    built = shutil.ignore_patterns("*.so", "__pycache__", "records")
    for name in COPIED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=built)
        else:
            shutil.copy(source, root)
    return root


def fresh_environment(folder: Path, pip_arguments: list[str], path: str) -> Environment:
    """`pip install` in a new environment, with `path` as PATH."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    links = folder / "outer"
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "misplace" not in entry.name:
            (links / entry.name).symlink_to(entry)
    (site / "outer.pth").write_text(f"{links}\n")
    command = [folder / "bin" / "python", "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation"]
    variables = {**os.environ, "PATH": path, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [*command, *pip_arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Environment(folder, site, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def editable(copy, tmp_path_factory) -> Environment:
    """An editable install where nothing can be compiled: PATH leads to an empty folder."""
    empty = tmp_path_factory.mktemp("empty")
    return fresh_environment(tmp_path_factory.mktemp("editable") / "venv", ["-e", str(copy)], str(empty))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Environment:
    """A wheel of the checkout, whose objects are compiled where those of its own install are not there or too old."""
    scratch = tmp_path_factory.mktemp("wheel")
    (scratch / "setup.cfg").write_text(f"[build]\nbuild_base = {scratch / 'build'}\n")  # its modules: from no older one
    variables = {**os.environ, "DIST_EXTRA_CONFIG": str(scratch / "setup.cfg")}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", scratch, CHECKOUT]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = scratch.glob("*.whl")
    return fresh_environment(scratch / "venv", [str(built)], os.environ["PATH"])


def imports_from_anywhere(environment: Environment, where: Path) -> None:
    code = "import misplace.kernels as k, misplace.engine as e, misplace.bench as b\n"
    for file in environment.run(code + "print(k.__file__, e.__file__, b.__file__)").split():
        assert Path(file).is_relative_to(where), file
    for name in GENERIC:
        assert not list(environment.site.glob(f"{name}*")), name
    found = f"import importlib.util as u; print([n for n in {GENERIC} if u.find_spec(n)])"
    assert environment.run(found) == "[]"
    assert os.access(environment.folder / "bin" / "misplace", os.X_OK)
    installed = "from importlib.metadata import entry_points as e; print(*sorted(e(group='misplace.commands').names))"
    assert environment.run(installed) == "bench profile"


PLANS = """
import torch
from misplace.kernels import ImplUnavailableError, token_plan
rates = dict(drop_rate=0.5, wrong_rate=0.2)
for impl in ("reference", "auto", "native"):
    try:
        print(*token_plan(torch.arange(3), num_patches=16, **rates, seed=1, epoch=0, view=0, impl=impl))
    except ImplUnavailableError as error:
        print(error)
    print("next")
"""


def plans(environment: Environment) -> list[str]:
    """What token_plan gives, or why not, as reference, by itself and natively."""
    return [said.strip() for said in environment.run(PLANS).split("next")[:3]]


def test_editable_imports_from_anywhere(editable, copy):
    imports_from_anywhere(editable, copy)


def test_without_a_compiler_the_install_says_what_is_missing(editable):
    assert "building without native kernels; missing: a C++ compiler (g++ or clang++)" in editable.log


def test_without_a_compiler_the_reference_works_and_native_says_why_not(editable):
    reference, auto, refusal = plans(editable)
    assert reference == auto
    assert reference.startswith("tensor([[")
    assert refusal.startswith("token_plan: impl=native is not available: misplace.kernels._C is not built")
    assert "C++ compiler" in refusal


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler, reason="no C++ compiler on PATH: native kernels cannot be built")
def test_wheel_imports_from_anywhere_and_runs_natively(wheel):
    imports_from_anywhere(wheel, wheel.site)
    reference, auto, native = plans(wheel)
    assert reference == auto == native
    assert native.startswith("tensor([[")
    built_with = wheel.run("from misplace.kernels import _C; print(_C.build_info()['torch'])")
    assert torch.__version__.startswith(built_with)
