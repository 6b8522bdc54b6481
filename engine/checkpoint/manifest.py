"""manifest.json: size and SHA-256 of every other file of a bundle, and of itself."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    size: int  # bytes
    sha256: str  # lower-case hexadecimal

    @classmethod
    def of(cls, data: bytes) -> "FileEntry":
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Manifest:
    format: str  # what kind of bundle: "misplace-checkpoint", "misplace-capture"
    step: int
    files: dict[str, FileEntry]

    def encode(self) -> bytes:
        """The only bytes that `decode` accepts for this manifest: a flipped bit anywhere is found."""
        return _encode(
            {
                "format": self.format,
                "version": VERSION,
                "step": self.step,
                "files": {name: vars(entry) for name, entry in self.files.items()},
            }
        )


def _encode(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields, indent=1, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps({**fields, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def decode(data: bytes, expected_format: str, expected_files: set[str]) -> Manifest:
    """Parses and checks a manifest; ValueError says what is wrong with it."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON") from None
    if not isinstance(fields, dict) or fields.get("format") != expected_format:
        raise ValueError(f"is not the manifest of a {expected_format}")
    if fields.get("version") != VERSION:
        raise ValueError(f"has format version {fields.get('version')!r}, this misplace reads {VERSION}")
    fields.pop("sha256", None)
    if _encode(fields) != data:
        raise ValueError("does not match its own SHA-256 (damaged or edited)")
    try:
        files = {name: FileEntry(**entry) for name, entry in fields["files"].items()}
        manifest = Manifest(fields["format"], fields["step"], files)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("lacks a field") from None
    numbers = [manifest.step, *(entry.size for entry in files.values())]
    if set(files) != expected_files or any(type(number) is not int for number in numbers):
        raise ValueError(f"does not list {' and '.join(sorted(expected_files))} as it should")
    return manifest
