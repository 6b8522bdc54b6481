"""The import contracts of pyproject.toml hold, and each of them breaks when it is violated."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
LINT_IMPORTS = Path(sysconfig.get_path("scripts"), "lint-imports")
FOLDERS = ("kernels", "engine", "bench")

VIOLATIONS = {
    "kernels/impl.py": ("import misplace.engine.errors", "arrows run one way"),
    "engine/errors.py": ("import misplace.bench.timing", "arrows run one way"),
    "bench/timing.py": ("import tests.conftest", "nothing imports the tests"),
    "kernels/gelu/api.py": ("from ..layer_norm import api", "an op never imports another"),
    "kernels/gelu/reference.py": ("from misplace.kernels import layer_norm", "an op never imports another"),
    "kernels/token_plan/native.py": ("from .reference import token_plan_reference", "a fused file never"),
    "engine/step.py": ("from misplace.kernels.gelu.reference import torch", "the inside of an op"),
    "engine/pretexts/dilemma.py": ("import misplace.engine.frameworks.moco_v3", "never know each other"),
    "engine/method.py": ("import triton", "triton and xformers only through"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the three folders as a plain package `misplace`, beside the contracts."""
    root = tmp_path_factory.mktemp("house")
    for folder in FOLDERS:
        shutil.copytree(
            CHECKOUT / folder,
            root / "misplace" / folder,
            ignore=lambda where, names: [n for n in names if not (n.endswith(".py") or Path(where, n).is_dir())],
        )
    shutil.copy(CHECKOUT / "pyproject.toml", root)
    return root


def lint(root: Path, path: str | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": path or ""}
    command = [LINT_IMPORTS, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_contracts_hold():
    done = lint(CHECKOUT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_contracts_hold_in_the_copy(house):
    done = lint(house, str(house))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", VIOLATIONS)
def test_contract_breaks(house, file):
    statement, contract = VIOLATIONS[file]
    target = house / "misplace" / file
    before = target.read_text()
    try:
        target.write_text(f"{before}\n{statement}\n")
        done = lint(house, str(house))
    finally:
        target.write_text(before)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if line.endswith("BROKEN") or "BROKEN (" in line]
    assert any(contract in line for line in broken), done.stdout


@pytest.mark.parametrize("name", ["csrc", "kernels", "engine", "bench", "tests"])
def test_folders_are_not_importable_by_their_bare_name(name, tmp_path):
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_a_folder_of_runs_changes_nothing_for_the_linter(tmp_path):
    """`make demo` leaves runs/, and tests import a module of that name."""
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    shutil.copytree(CHECKOUT / "tests" / "engine", tmp_path / "tests" / "engine")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
