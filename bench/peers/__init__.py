"""What the ops are measured against, written as people write it today. One module per op."""

import shutil
from collections.abc import Callable

import torch

from misplace.engine.errors import UserError


def compiled(function: Callable, device: torch.device, mode: str | None = None) -> Callable:
    """`function` under torch.compile for fixed shapes; mode: None is the one that serves one op best on `device`.

    What was compiled before is forgotten: past its limit of shapes a peer would quietly run eager.
    """
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise UserError("--against compile: torch.compile needs a C++ compiler on this CPU; install g++")
    mode = mode or ("max-autotune-no-cudagraphs" if device.type == "cuda" else "default")
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True, mode=mode)
