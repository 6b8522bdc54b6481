"""Writing files so that a killed process or a power cut leaves the old bytes or the new, never a mixture.

Everything goes through os.write, os.fsync and os.rename, so that a test can kill the process at each of them.
"""

import os
from pathlib import Path

_CHUNK = 16 << 20  # bytes per os.write: far below the 2 GiB that one call can take


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable (a rename is not, until its folder is synced)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes all of `data`; OSError (a full disk) may leave a part of it written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:_CHUNK]) :]


def write_file(path: Path, data: bytes) -> None:
    """Creates `path` with `data` and syncs the file; its name is durable once the folder is synced too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Where `replace_file` writes first: a hidden sibling, on the same file system."""
    return path.with_name(f".tmp-{path.name}")


def replace_file(path: Path, data: bytes) -> None:
    """Gives `path` the content `data` in one step: a reader sees the old file or the new one."""
    temporary = temporary_name(path)
    write_file(temporary, data)
    os.rename(temporary, path)
    sync_folder(path.parent)
