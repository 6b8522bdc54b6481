"""Whether DALI can be used here, without importing it."""

import importlib.util

PACKAGE = "nvidia-dali-cuda130"


def why_unavailable() -> str | None:
    """None where DALI is installed, else what to install."""
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:  # no package nvidia at all
        found = None
    return None if found else f"NVIDIA DALI is not installed: pip install {PACKAGE}"
