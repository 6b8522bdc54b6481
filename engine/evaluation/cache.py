"""Features on disk, found again by a digest of everything that they depend on."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from misplace.engine.data import Source
from misplace.engine.durable import replace_file

FORMAT = "misplace-features-1"
LARGEST = 4 << 30  # bytes kept
DIGEST_BYTES = 32


def default_cache() -> Path:
    """Below $MISPLACE_DATA, or else below ~/.cache/misplace."""
    return Path(os.environ.get("MISPLACE_DATA") or Path.home() / ".cache" / "misplace").expanduser() / "features"


def images_digest(source: Source, indices: Tensor) -> str:
    """SHA-256 over the stored bytes of these images, in order; one that cannot be read counts as empty."""
    sha = hashlib.sha256()
    for index in indices.tolist():
        try:
            data = source.read(index)
        except OSError:
            data = b""
        raw = data if isinstance(data, bytes) else repr(data.shape).encode() + data.tobytes()
        sha.update(f"{index} {len(raw)} ".encode())
        sha.update(raw)
    return sha.hexdigest()


class FeatureCache:
    """Files FOLDER/KEY, each a digest and tensors; beyond `largest` bytes those not used for longest go."""

    def __init__(self, folder: Path, *, largest: int = LARGEST, say: Callable[[str], None] = print):
        self.folder, self._largest, self._say = folder, largest, say

    def get(self, depends_on: tuple[str, ...], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of `make()`, on the CPU, from disk where they were made before.

        depends_on: everything they are a function of. A damaged file is made again; a folder that cannot be written is
        done without, with a line that says so.
        """
        path = self.folder / self.key(depends_on)
        found = self._read(path)
        if found is not None:
            return found
        made = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            data = safetensors.torch.save(made)
            replace_file(path, hashlib.sha256(data).digest() + data)
            self._prune(path)
        except OSError as error:
            self._say(f"features are not kept: {self.folder}: {error.strerror}")
        return made

    @staticmethod
    def key(depends_on: tuple[str, ...]) -> str:
        """A file name for these words; also of the format and of the versions that compute."""
        words = (FORMAT, torch.__version__, *depends_on)
        return hashlib.sha256("\0".join(words).encode()).hexdigest()

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, tensors = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if hashlib.sha256(tensors).digest() == digest:
            try:
                found = safetensors.torch.load(tensors)
                os.utime(path)
                return found
            except (SafetensorError, OSError):
                pass
        self._say(f"{path}: is damaged; its features are computed again")
        return None

    def _prune(self, newest: Path) -> None:
        files = [(entry.stat().st_mtime, entry.stat().st_size, entry) for entry in self.folder.iterdir()]
        total = sum(size for _, size, _ in files)
        for _, size, entry in sorted(files, key=lambda file: file[0]):
            if total <= self._largest:
                return
            if entry != newest:
                entry.unlink(missing_ok=True)
                total -= size
