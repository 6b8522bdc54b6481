"""What a test can run on this machine."""

import torch

from ..impl import Impl, why_unavailable


def runnable(supported: dict[str, tuple[Impl, ...]]) -> list[tuple[str, Impl]]:
    """Every (device, impl) of an op's SUPPORTED that can run here."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [
        (device, impl)
        for device in devices
        for impl in supported.get(device, ())
        if why_unavailable(impl, torch.device(device)) is None
    ]
