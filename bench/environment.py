"""Where a number was measured: device, driver, versions, commit."""

import functools
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from misplace.engine.run_folder.environment import describe_environment

CHECKOUT = Path(__file__).resolve().parents[1]
VERSIONS_OF = ("misplace", "torch", "triton", "xformers")


@functools.cache
def describe(device: torch.device) -> dict[str, str]:
    """device, driver, versions, commit ("+" where files differ from it) and date, as in a row of results."""
    found = describe_environment(str(device), {})
    versions = {name: found["versions"][name] for name in VERSIONS_OF}
    return {
        "device": found["device_name"] or found["cpu"],
        "driver": driver() if device.type == "cuda" else "",
        "versions": " ".join(f"{name}={version}" for name, version in versions.items() if version),
        "commit": (found["git_commit"] or "")[:12] + ("+" if found["git_modified"] else ""),
        "date": datetime.now(UTC).date().isoformat(),
    }


def driver() -> str:
    """The NVIDIA driver's version; "" where nvidia-smi is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0].strip()
