"""What a run computes with: versions, machine, commit. Written beside the run, read by people."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_DISTRIBUTIONS = (
    "misplace",
    "torch",
    "torchvision",
    "triton",
    "xformers",
    "nvidia-dali-cuda130",
    "safetensors",
    "numpy",
    "pillow",
)


def describe_environment(device: str, implementations: Mapping[str, str]) -> dict[str, Any]:
    """A plain dict for environment.json; a package that is not installed has version None."""
    commit, modified = _checkout()
    return {
        "started_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if str(device).startswith("cuda") else None,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: _version(name) for name in _DISTRIBUTIONS},
        "git_commit": commit,
        "git_modified": modified,
        "implementations": dict(implementations),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _checkout() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from, and whether tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    # Installed inside somebody else's repository (a venv in their project), the commit would be theirs.
    if _git(root, "rev-parse", "--show-toplevel") != str(root):
        return None, None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if commit is None or changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, None where git is missing or refuses."""
    # A hook that started us sets GIT_DIR and the like, which would point git elsewhere.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
