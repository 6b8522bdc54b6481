"""A bundle: one folder with tensors.safetensors, state.json and the manifest over both.

Tensors and plain JSON are all there is, so reading one executes nothing. Every digest is verified before a
byte is parsed, and what was verified is what is parsed: each file is read once.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from misplace.engine.durable import sync_folder, write_file

from . import manifest as manifests
from .errors import DamagedError
from .manifest import FileEntry, Manifest

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_LARGEST_MANIFEST = 1 << 16  # bytes; ours is about 500


class Bundle(NamedTuple):
    step: int
    tensors: dict[str, Tensor]  # on the CPU, contiguous, each with its own storage
    state: dict[str, Any]


def encode(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of both files. ValueError or TypeError for a state that would not read back equal."""
    text = json.dumps(state, allow_nan=False, indent=1)
    if json.loads(text) != state or not isinstance(state, dict):
        raise ValueError("state must be a dict of plain JSON: tuples and keys that are not strings change")
    return {TENSORS: safetensors.torch.save(_separate(tensors)), STATE: text.encode()}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense CPU tensors of which no two share storage: safetensors refuses to write aliases."""
    separate, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        storage = tensor.untyped_storage().data_ptr()
        if storage in storages or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(storage)
        separate[name] = tensor
    return separate


def write(folder: Path, files: Mapping[str, bytes], *, format: str, step: int) -> None:
    """Writes a bundle into the new folder `folder`, synced, the manifest last. OSError as it comes."""
    entries = {name: FileEntry.of(data) for name, data in files.items()}
    os.mkdir(folder)
    for name, data in files.items():
        write_file(folder / name, data)
    write_file(folder / MANIFEST, Manifest(format, step, entries).encode())
    sync_folder(folder)


def read(folder: Path, *, format: str) -> Bundle:
    """Verifies and reads a bundle; DamagedError names the file that is missing or not what was written."""
    manifest = read_manifest(folder, format=format)
    verified = {name: _read_verified(folder / name, entry) for name, entry in manifest.files.items()}
    try:
        tensors = safetensors.torch.load(verified[TENSORS])
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise DamagedError(f"{folder / TENSORS}: is not a readable safetensors file ({error})") from None
    try:
        state = json.loads(verified[STATE])
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise DamagedError(f"{folder / STATE}: is not a JSON object")
    return Bundle(manifest.step, tensors, state)


def read_manifest(folder: Path, *, format: str) -> Manifest:
    """The checked manifest of a bundle; DamagedError when it is missing, unreadable or altered."""
    path = folder / MANIFEST
    try:
        return manifests.decode(_read_bytes(path, _LARGEST_MANIFEST), format, {TENSORS, STATE})
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from None


def _read_verified(path: Path, entry: FileEntry) -> bytes:
    data = _read_bytes(path, entry.size)
    if len(data) != entry.size:
        raise DamagedError(f"{path}: has {len(data)} bytes, the manifest says {entry.size} (truncated)")
    if FileEntry.of(data) != entry:
        raise DamagedError(f"{path}: its SHA-256 is not the manifest's (damaged or edited)")
    return data


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(f"{path}: is not a file")
        if status.st_size > limit:
            raise DamagedError(f"{path}: has {status.st_size} bytes, expected at most {limit}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing") from None
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror})") from None
