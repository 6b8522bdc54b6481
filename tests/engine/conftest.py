"""Folders of images for the tests of the engine: good ones, and every kind of bad file."""

import importlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from misplace.bench.peers.timm_trunk import import_timm
from misplace.engine.cli import main

torch.set_num_threads(1)  # small tensors; pytest-xdist uses the cores


def encoded(seed: int, size: tuple[int, int] = (40, 32), format: str = "JPEG", mode: str = "RGB") -> bytes:
    """A smooth, noisy picture of (width, height)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size)
    buffer = io.BytesIO()
    coarse.convert(mode).save(buffer, format)
    return buffer.getvalue()


def huge_png(width: int = 60_000, height: int = 60_000) -> bytes:
    """A few bytes whose header claims 3,600 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD_FILES = {
    "empty.jpg": (b"", "the file is empty"),
    "header_only.jpg": (encoded(1)[:220], "damaged header"),
    "huge.png": (huge_png(), "too large"),
    "large.png": (huge_png(10_000, 10_000), "too large"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a JPEG"),
    "text.jpg": (b"this is not an image\n" * 20, "not a JPEG, PNG, WebP or BMP image"),
    "truncated.jpg": (encoded(2)[:-200], "truncated or damaged"),
    "truncated.png": (encoded(3, format="PNG")[:-400], "truncated or damaged"),
}


@pytest.fixture
def photo_folder(tmp_path) -> Path:
    """Two classes of 12 good colour images of differing sizes; one a PNG called .jpg."""
    root = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(12):
            format = "PNG" if i == 5 else "JPEG"
            data = encoded(100 * label + i, (30 + 3 * i, 45 - 2 * i), format)
            (root / name / f"{i:02}.jpg").write_bytes(data)
    return root


@pytest.fixture
def corrupt_folder(photo_folder) -> Path:
    """photo_folder with a third class that is every kind of bad file."""
    (photo_folder / "bad").mkdir()
    for name, (data, _) in BAD_FILES.items():
        (photo_folder / "bad" / name).write_bytes(data)
    return photo_folder


@pytest.fixture
def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, how the reason begins)."""
    return BAD_FILES


@pytest.fixture
def make_image():
    """encoded(seed, (width, height), format, mode) -> bytes of a picture."""
    return encoded


@pytest.fixture
def runs(monkeypatch):
    """The module runs.py beside this file: small runs."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("runs")


@pytest.fixture
def losses(monkeypatch):
    """The module losses.py beside this file: losses of short runs."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("losses")


@pytest.fixture(autouse=True)
def own_feature_cache(monkeypatch, tmp_path_factory):
    """`misplace evaluate` keeps the features of a test in a folder of the test."""
    folder = tmp_path_factory.mktemp("kept") / "features"
    monkeypatch.setattr("misplace.engine.commands.evaluate.default_cache", lambda: folder)


@pytest.fixture
def one_line():
    """The text of an error that a test caught, which must be a single line."""

    def text_of(error) -> str:
        assert "\n" not in str(error.value)
        return str(error.value)

    return text_of


@pytest.fixture
def refused(capfd):
    """The one line on stderr of a command that must end with exit code 2."""

    def line_of(*arguments) -> str:
        capfd.readouterr()
        assert main(list(map(str, arguments))) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("misplace: "), lines
        return lines[0]

    return line_of


@pytest.fixture
def images(runs, tmp_path) -> Path:
    """A folder of 48 striped images in two classes."""
    return runs.striped_images(tmp_path / "images")


@pytest.fixture(scope="session")
def timm():
    """timm, beside a CPU torch too."""
    return import_timm()
