"""Kill, or fail, this process at its k-th change to the file system.

A script beside this file can import it; a test puts this folder on sys.path first. Points are the calls that
Python code makes to the functions named in CALLS; a killed or failed write has written half of its bytes.
Processes forked later inherit the patches but are not killed.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

CALLS = ("mkdir", "write", "fsync", "rename", "replace", "unlink", "rmdir")


def install(k: int, error: int | None = None) -> Callable[[], None]:
    """The k-th call (from 1) kills the process, or raises OSError(error); returns what undoes it."""

    def hit(number: int, name: str, real: Callable, arguments: tuple) -> None:
        if number != k:
            return
        if name == "write":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(error, os.strerror(error))

    return _patch(hit)


def count(function: Callable[[], Any]) -> int:
    """How many kill points `function` passes."""
    return len(trace(function))


def trace(function: Callable[[], Any]) -> list[tuple[str, str]]:
    """(call, base name of what it changes) of every kill point that `function` passes."""
    seen: list[tuple[str, str]] = []

    def note(_number: int, name: str, _real: Callable, arguments: tuple) -> None:
        target = arguments[0]
        target = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        seen.append((name, os.path.basename(target)))

    undo = _patch(note)
    try:
        function()
    finally:
        undo()
    return seen


def _patch(before: Callable[[int, str, Callable, tuple], None]) -> Callable[[], None]:
    """Calls before(number, name, real function, arguments) ahead of each of CALLS in this process."""
    originals = {name: getattr(os, name) for name in CALLS}
    owner, calls = os.getpid(), 0

    def wrap(name: str, real: Callable) -> Callable:
        def patched(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            if os.getpid() == owner:
                calls += 1
                before(calls, name, real, arguments)
            return real(*arguments, **options)

        return patched

    for name, real in originals.items():
        setattr(os, name, wrap(name, real))

    def undo() -> None:
        for name, real in originals.items():
            setattr(os, name, real)

    return undo
