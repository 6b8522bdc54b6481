"""Tar files that mean harm or are broken: each refused in one line that names the member; damage never gives more."""

import io
import random
import tarfile
import tracemalloc

import pytest

from misplace.engine.data.shards import Shards
from misplace.engine.data.shards.index import build, index_path
from misplace.engine.data.shards.tar_headers import BLOCK, TarError
from misplace.engine.errors import UserError


def entry(name, size=0, kind=tarfile.REGTYPE, link="", **fields):
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname = size, kind, link
    for field, value in fields.items():
        setattr(header, field, value)
    return header


def tar_of(*entries, format=tarfile.GNU_FORMAT) -> bytes:
    """entries: TarInfo, or (name, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for item in entries:
            if isinstance(item, tuple):
                tar.addfile(entry(item[0], len(item[1])), io.BytesIO(item[1]))
            else:
                tar.addfile(item)
    return buffer.getvalue()


def with_size(data: bytes, field: bytes) -> bytes:
    """The first header with another size field, its checksum set right."""
    header = bytearray(data[:BLOCK])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[BLOCK:]


GOOD = tar_of(("a.jpg", b"one"), ("a.cls", b"0"), ("b.jpg", b"two"), ("b.cls", b"1"))
HOSTILE = {
    "a symbolic link": (tar_of(entry("a.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")), "'a.jpg' is a symbolic link"),
    "a hard link": (tar_of(entry("a.jpg", kind=tarfile.LNKTYPE, link="b")), "'a.jpg' is a hard link"),
    "a long link": (tar_of(entry("a.jpg", kind=tarfile.SYMTYPE, link="x" * 300)), "a link"),
    "a device": (tar_of(entry("a.jpg", kind=tarfile.CHRTYPE)), "'a.jpg' is a device"),
    "a pipe": (tar_of(entry("a.jpg", kind=tarfile.FIFOTYPE)), "'a.jpg' is a named pipe"),
    "an unknown kind": (tar_of(entry("a.jpg", kind=b"Z")), "'a.jpg' is of the unknown kind"),
    "a way out": (tar_of(("../a.jpg", b"x")), "'../a.jpg' leads out of its folder"),
    "a way out inside": (tar_of(("a/../../b.jpg", b"x")), "leads out of its folder"),
    "an absolute name": (tar_of(("/etc/a.jpg", b"x")), "'/etc/a.jpg' is an absolute name"),
    "a long way out": (tar_of(("a/" * 120 + "../b.jpg", b"x")), "leads out of its folder"),
    "a pax way out": (tar_of(("../é.jpg", b"x"), format=tarfile.PAX_FORMAT), "leads out of its folder"),
    "a name with a line feed": (tar_of(("a\nb.jpg", b"x")), "is no name for a file"),
    "no name": (tar_of(("", b"x")), "is no name for a file"),
    "a giant": (with_size(GOOD, b"77777777777\0"), "'a.jpg' claims 8589934591 bytes, above the cap of 512 MiB"),
    "a giant in base 256": (with_size(GOOD, b"\x80" + b"\xff" * 11), "above the cap of 512 MiB"),
    "a negative size": (with_size(GOOD, b"\xff" * 12), "is not a number"),
    "a size of letters": (with_size(GOOD, b"abcdefghijk\0"), "is not a number"),
    "more than there is": (with_size(GOOD, b"00004000000\0"), "truncated: 'a.jpg' claims 1048576 bytes"),
    "cut off in a member": (tar_of(("a.jpg", b"x" * 3000))[:2000], "truncated: 'a.jpg' claims 3000 bytes and 1488"),
    "cut off in a header": (GOOD[:700], "truncated"),
    "no end": (GOOD[: 8 * BLOCK], "truncated: it ends without the empty block"),
    "a wrong checksum": (b"b" + GOOD[1:], "the checksum of its header is wrong"),
    "not a tar file": (b"this is text\n" * 200, "is not a number"),
    "a member twice": (tar_of(("a.jpg", b"1"), ("a.jpg", b"2")), "'a.jpg' comes twice"),
    "two images": (tar_of(("a.jpg", b"1"), ("a.png", b"2")), "the sample 'a' has 2 images"),
    "no image": (tar_of(("a.cls", b"1")), "the sample 'a' has no image"),
    "a sample in two places": (tar_of(("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"1")), "the sample 'a' comes twice"),
    "a class of letters": (tar_of(("a.jpg", b"1"), ("a.cls", b"cat")), "'a.cls' holds b'cat'"),
    "a negative class": (tar_of(("a.jpg", b"1"), ("a.cls", b"-1")), "'a.cls' holds b'-1'"),
    "a giant class": (tar_of(("a.jpg", b"1"), ("a.cls", b"1" * 3000)), "'a.cls' has 3000 bytes"),
    "broken metadata": (tar_of(("a.jpg", b"1"), ("a.json", b"{")), "'a.json' is not JSON"),
    "nested metadata": (tar_of(("a.jpg", b"1"), ("a.json", b"[" * 100_000)), "'a.json' is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_refused_by_name(kind, tmp_path):
    data, says = HOSTILE[kind]
    shard = tmp_path / "0000.tar"
    shard.write_bytes(data)
    with pytest.raises(UserError) as error:
        Shards([shard])
    assert str(error.value).startswith(f"{shard}: ") and says in str(error.value)
    assert "\n" not in str(error.value) and not index_path(shard).exists()


def test_a_folder_inside_is_nothing_to_read(tmp_path):
    data = tar_of(entry("d", kind=tarfile.DIRTYPE, mode=0o755), ("d/a.jpg", b"one"))
    (tmp_path / "x.tar").write_bytes(data)
    assert Shards([tmp_path / "x.tar"]).read(0) == b"one"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(format, tmp_path):
    names = ["short.jpg", "d/" * 40 + "n" * 60 + ".jpg"]
    if format != tarfile.USTAR_FORMAT:
        names += ["é" * 60 + ".jpg", "l" * 300 + ".png"]
    data = tar_of(*((name, name.encode()) for name in names), format=format)
    (tmp_path / "x.tar").write_bytes(data)
    source = Shards([tmp_path / "x.tar"])
    assert [source.read(i) for i in range(len(source))] == [name.encode() for name in names]
    assert [source.path_of(i).partition(".tar:")[2] for i in range(len(names))] == names


def test_a_size_in_base_256_is_read(tmp_path):
    (tmp_path / "x.tar").write_bytes(with_size(GOOD, b"\x80" + (3).to_bytes(11, "big")))
    assert Shards([tmp_path / "x.tar"]).read(0) == b"one"


def test_damage_gives_the_same_samples_or_a_reason(tmp_path):
    """2,000 shards with bytes changed or cut off; none costs more memory than it has bytes, a few times."""
    rng, shard, reasons, read = random.Random(0), tmp_path / "x.tar", 0, 0
    whole = tar_of(*((f"{i}.{kind}", b"12") for i in range(4) for kind in ("jpg", "cls")), format=tarfile.PAX_FORMAT)
    tracemalloc.start()
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data))]
        shard.write_bytes(data)
        try:
            index = build(shard)
        except TarError as error:
            assert "\n" not in str(error)
            reasons += 1
        else:
            assert len(index.offset) <= 4 and (index.offset + index.size <= len(data)).all()
            read += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons > 500 and read > 200 and peak < 4 << 20
