"""One writer per run folder: a file lock, which the kernel drops when its process ends, however it ends."""

import fcntl
import os
from pathlib import Path

from misplace.engine.errors import UserError

_held: set[int] = set()  # descriptors of this process's locks


def _close_in_child() -> None:
    """A forked data worker must not hold the lock: it may outlive a killed trainer by some seconds."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class RunLock:
    """Holds the lock file `path` from construction to `release` or the end of the process.

    UserError, naming the other process, when it is held; also where the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 20).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise UserError(_refusal(path.parent, holder, error)) from None
        _held.add(self._descriptor)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            os.close(self._descriptor)


def _refusal(folder: Path, holder: str, error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        who = f"process {holder}" if holder else "another process"
        return f"{folder}: {who} is writing this run; stop it or choose another --out"
    return f"{folder}: cannot be locked ({error.strerror}); choose an --out on a file system with locks"
