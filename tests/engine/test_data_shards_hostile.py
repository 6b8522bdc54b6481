"""Hostile and damaged shards: refused by name in one line, or read exactly as they were."""

import io
import json
import os
import struct
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from misplace.engine.data import open_source
from misplace.engine.data.image_folder import MAX_FILE_BYTES
from misplace.engine.data.shards import index_file, write_shards
from misplace.engine.data.shards.index import build_index
from misplace.engine.data.shards.tar import members
from misplace.engine.errors import UserError

END = bytes(1024)


def header(name="a.jpg", size=0, kind=b"0", *, magic=b"ustar\x0000", size_field=None, prefix=b"", link="") -> bytes:
    """A header with the right checksum, whatever it says."""
    block = bytearray(512)
    fields = {0: os.fsencode(name), 100: b"0000644\0", 124: size_field or b"%011o\0" % size, 156: kind}
    fields |= {157: os.fsencode(link), 257: magic, 345: prefix}
    for at, data in fields.items():
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name="a.jpg", data=b"image", kind=b"0", **options) -> bytes:
    return header(name, len(data), kind, **options) + data + bytes(-len(data) % 512)


def pax(**records) -> bytes:
    data = b""
    for key, value in records.items():
        body = f" {key.replace('_', '.')}={value}\n".encode()
        length = len(body) + len(str(len(body) + len(str(len(body)))))
        data += str(length).encode() + body
    return member("pax", data, b"x")


BASE256 = b"\x80" + bytes(10)
HOSTILE = {
    "hard link": (member() + header("b.jpg", 0, b"1", link="a.jpg"), "b.jpg is a hard link"),
    "symbolic link": (header("x.jpg", 0, b"2", link="/etc/passwd"), "x.jpg is a symbolic link"),
    "device": (header("null.jpg", 0, b"3"), "null.jpg is a character device"),
    "block device": (header("sda.jpg", 0, b"4"), "sda.jpg is a block device"),
    "fifo": (header("pipe.jpg", 0, b"6"), "pipe.jpg is a fifo"),
    "sparse": (header("s.jpg", 0, b"S"), "s.jpg is a sparse file"),
    "unknown kind": (header("v.jpg", 0, b"V"), "v.jpg is of the unknown kind"),
    "pax sparse": (pax(GNU_sparse_major="1") + member(), "a sparse member"),
    "up": (member("../a.jpg"), "../a.jpg has .. in its name"),
    "up inside": (member("a/../../b.jpg"), "a/../../b.jpg has .. in its name"),
    "up in a prefix": (member("a.jpg", prefix=b"x/.."), "x/../a.jpg has .. in its name"),
    "up in a folder's name": (header("../", 0, b"5"), "../ has .. in its name"),
    "absolute": (member("/etc/a.jpg"), "/etc/a.jpg has an absolute name"),
    "absolute by pax": (pax(path="/etc/a.jpg") + member(), "/etc/a.jpg has an absolute name"),
    "absolute by GNU": (member("L", b"/etc/a.jpg\0", b"L") + member(), "/etc/a.jpg has an absolute name"),
    "newline": (member("a\nb.jpg"), "a�b.jpg has a control character"),
    "escape": (member("\x1b[2Ja.jpg"), "�[2Ja.jpg has a control character"),
    "line separator": (member("a\u2028.jpg"), "a�.jpg has a control character"),
    "NUL": (member("a.jpg\0b.jpg"), "a.jpg has a NUL byte in its name"),
    "NUL by pax": (pax(path="a.jpg\0b") + member(), "a.jpg�b has a NUL byte in its name"),
    "no name": (member(""), "a member without a name"),
    "beyond the end": (header("a.jpg", 5000), "a.jpg says it has 5000 bytes, which reach beyond the end"),
    "beyond the end by pax": (pax(size="99999999999999999999") + member(), "a.jpg says it has 99999999999999999999"),
    "negative": (header(size_field=b"\xff" * 12), "the size of a.jpg is negative"),
    "base 256": (header(size_field=b"\x80" + b"\x7f" * 11), "a.jpg says it has"),
    "no octal": (header(size_field=b"00000000009\0"), "the size of a.jpg is no number"),
    "minus": (header(size_field=b"-0000000005\0"), "the size of a.jpg is no number"),
    "no size": (header(size_field=b" " * 12), "the size of a.jpg is no number"),
    "pax minus": (pax(size="-5") + member(), "a pax size that is no number: -5"),
    "folder with a size": (member("a/", b"x", b"5"), "a/ is a folder with a size"),
    "pax that lies about its length": (member("p", b"99 path=a\n", b"x") + member(), "damaged pax records"),
    "pax that is none": (member("p", b"hello", b"x") + member(), "damaged pax records"),
    "a name for all": (member("g", b"12 path=a.b\n", b"g") + member(), "that name every member alike"),
    "long long name": (member("L", b"a" * 70_000, b"L") + member(), "a name or pax records of 70000 bytes"),
    "long name of nobody": (member("L", b"a.jpg\0", b"L"), "belong to no member"),
    "checksum": (member().replace(b"0000644", b"0000755", 1), "a.jpg has a header with a wrong checksum, at byte 0"),
    "twice": (member() + member(), "a.jpg is there twice"),
    "twice, by case": (member("a.jpg") + member("a.JPG"), "a.JPG is there twice"),
    "twice, far apart": (member("a.jpg") + member("b.jpg") + member("a.jpg"), "a.jpg is there twice"),
    "torn apart": (
        member("a.jpg") + member("b.jpg") + member("a.png"),
        "a.png is of the same sample as a.jpg, but not beside it",
    ),
    "no image": (member("a.jpg") + member("b.cls", b"1"), "the sample b has no image"),
    "two images": (member("a.jpg") + member("a.png"), "the sample a has two images, a.jpg and a.png"),
    "label": (member() + member("a.cls", b"cat"), "a.cls is not an integer"),
    "long label": (member() + member("a.cls", b"1" * 5000), "a.cls is not an integer"),
    "large label": (member() + member("a.cls", b"2000000000"), "a.cls has the label 2000000000"),
    "JSON": (member() + member("a.json", b"{"), "a.json is not JSON"),
    "deep JSON": (member() + member("a.json", b"[" * 100_000), "a.json is not JSON"),
    "large JSON": (member() + member("a.json", b" " * 1_100_000), "a.json is larger than 1 MiB"),
    "two tars": (member() + END + member("b.jpg"), "has data after its end mark at byte 1024"),
    "gzip": (b"\x1f\x8b" + bytes(600), "is compressed with gzip"),
    "no tar": (b"hello" * 300, "no tar header, at byte 0"),
    "old tar": (member(magic=bytes(8)), "no tar header, at byte 0"),
    "zeros": (b"", "it holds no samples"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_shards_are_refused_by_name(what, tmp_path):
    data, says = HOSTILE[what]
    (tmp_path / "0000.tar").write_bytes(data + END)
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / "0000.tar"))
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/0000.tar: ") and says in text and len(text.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if what != "zeros"] in (["0000.tar"], [])


def test_a_giant_image_is_refused_by_name(tmp_path):
    with (tmp_path / "0000.tar").open("wb") as file:
        file.write(header("big.jpg", MAX_FILE_BYTES + 1))
        file.truncate(512 + MAX_FILE_BYTES + 512)
        file.seek(0, os.SEEK_END)
        file.write(END)
    with pytest.raises(UserError, match=r"0000.tar: big.jpg is larger than 512 MiB"):
        open_source(str(tmp_path))


def test_a_shard_cut_off_anywhere_is_refused(tmp_path):
    whole, file = member("a.jpg") + member("b.jpg", b"x" * 700) + END, tmp_path / "0000.tar"
    for length in (0, 1, 511, 512, 515, 1000, 1024, 1400, 1536, 2000, 2500, 2560, 2600):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            open_source(str(file))
        text = str(error.value)
        assert text.startswith(f"{file}: ") and ("cut off" in text or "is empty" in text), length
    file.write_bytes(whole[:3072])
    assert len(open_source(str(file))) == 2


def test_sizes_in_base_256_and_by_pax(tmp_path):
    data = b"x" * 700
    first = header("a.jpg", size_field=b"\x80" + bytes(7) + struct.pack(">I", 700)) + data + bytes(324)
    second = pax(size=700, mtime="1.5", path="ü/b.jpg") + header("b", 0) + data + bytes(324)
    (tmp_path / "0.tar").write_bytes(first + second + header("folder/", 0, b"5") + END)
    source = open_source(str(tmp_path))
    assert source.read(0) == source.read(1) == data and source.path_of(1).endswith("0.tar:ü/b.jpg")


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / "0.tar").write_bytes(member(os.fsdecode(b"\xff\xfe.jpg")) + END)
    for _ in range(2):  # the second time from the index
        source = open_source(str(tmp_path))
        assert source.path_of(0) == f"{tmp_path}/0.tar:��.jpg" and source.read(0) == b"image"


def test_a_long_name_cannot_make_a_long_error(tmp_path):
    (tmp_path / "0.tar").write_bytes(member("L", b"/" + b"a" * 60_000 + b"\0", b"L") + member() + END)
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path))
    assert len(str(error.value)) < 400


def test_what_is_called_tar_and_is_no_file(tmp_path):
    (tmp_path / "0.tar").write_bytes(member() + END)
    os.mkfifo(tmp_path / "1.tar")
    os.mkfifo(tmp_path / "0.tar.index")
    assert len(open_source(str(tmp_path))) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is damaged: not JSON"),
        (b"[" * 100_000, "is damaged: not JSON"),
        (b"[]", "is no description of shards"),
        ({"version": 2}, "is no description of shards, version 1"),
        ({"class_names": "cat"}, "class_names cannot be"),
        ({"class_names": ["cat", "cat"]}, "class_names cannot be"),
        ({"class_names": ["a\nb"]}, "class_names cannot be"),
        ({"image_size": -1}, "image_size cannot be -1"),
        ({"image_size": 10**9}, "image_size cannot be"),
        ({"patch_size": "16"}, "patch_size cannot be"),
        ({"channels": 2}, "channels cannot be 2"),
        ({"channels": 1}, "mean cannot be"),
        ({"std": [0, 1, 1]}, "std cannot be"),
        ({"mean": [float("nan")] * 3}, "mean cannot be"),
        ({"shards": {"0000.tar": 2}}, "0000.tar holds 1 samples, dataset.json beside it says 2"),
        ({"shards": {"0001.tar": 2}}, "0001.tar is missing"),
        ({"shards": ["0000.tar"]}, "shards cannot be"),
    ],
)
def test_a_description_that_cannot_be(content, says, tmp_path):
    (tmp_path / "0000.tar").write_bytes(member() + END)
    data = content if isinstance(content, bytes) else json.dumps({"version": 1, **content}).encode()
    (tmp_path / "dataset.json").write_bytes(data)
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path))
    assert says in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def mixed_tar() -> bytes:
    """Three samples with labels and metadata: ustar, GNU and pax names, a folder."""
    data = b""
    for number, format in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        stem = "sample" if number == 0 else "long" * 30 + f"/{number}"
        for extension, content in (("cls", b"1"), ("jpg", bytes(range(200)) * 4), ("json", b'{"a": 1}')):
            info = tarfile.TarInfo(f"{stem}.{extension}")
            info.size = len(content)
            data += info.tobuf(format) + content + bytes(-len(content) % 512)
    return data + header("folder/", 0, b"5") + bytes(4 * 512)


WHOLE = mixed_tar()
SMALL = 1 << 22


def opened(data: bytes, folder: Path):
    """(name, start, size) of every sample; None where it was refused in one line. Never much memory."""
    file = folder / "x.tar"
    file.write_bytes(data)
    tracemalloc.start()
    try:
        index, _ = index_file.open_index(file)
        return [(index.name(i), int(index.start[i]), int(index.size[i])) for i in range(index.num_samples)]
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and "x.tar" in str(error)
        return None
    finally:
        assert tracemalloc.get_traced_memory()[1] < SMALL
        tracemalloc.stop()
        (folder / "x.tar.index").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def expected(place) -> list[tuple[str, int, int]]:
    rows = opened(WHOLE, place)
    assert [row[0] for row in rows] == ["sample.jpg", "long" * 30 + "/1.jpg", "long" * 30 + "/2.jpg"]
    return rows


def contents_of_names() -> set[int]:
    """The bytes that are a long name or pax records: they have no checksum."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        return {at for info in tar for at in range(info.offset + 512, info.offset_data - 512)}


NAMES = contents_of_names()
fuzz = settings(max_examples=250, deadline=None)


@fuzz
@given(at=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
@example(at=156, value=ord("2"))
@example(at=124, value=0x80)
def test_one_changed_byte_gives_the_same_places_or_one_line(at, value, place, expected):
    """The header has a checksum; of the contents nobody can tell, and the places stay."""
    data = bytearray(WHOLE)
    data[at] = value
    found = opened(bytes(data), place)
    if found is not None:
        assert [row[1:] for row in found] == [row[1:] for row in expected]
        assert at in NAMES or found == expected


@fuzz
@given(length=st.integers(0, len(WHOLE) - 1))
def test_a_cut_gives_the_same_samples_or_one_line(length, place, expected):
    found = opened(WHOLE[:length], place)
    assert found is None or (found == expected and length >= len(WHOLE) - 3 * 512)


CHANGE = st.tuples(
    st.sampled_from(("set", "number", "insert", "remove", "copy", "swap")),
    st.integers(0, len(WHOLE) // 512 - 1),
    st.integers(0, 511),
    st.integers(0, len(WHOLE) // 512 - 1),
    st.binary(min_size=1, max_size=12),
)


def mended(block: bytes) -> bytes:
    """A header with the right checksum again, so that what it says is believed."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def changed(blocks: list[bytes], change) -> None:
    how, first, within, second, new = change
    first, second = first % len(blocks), second % len(blocks)
    if how in ("set", "number"):
        at = within if how == "set" else 124
        block = (blocks[first][:at] + new + blocks[first][at + len(new) :])[:512]
        blocks[first] = mended(block) if block[257:262] == b"ustar" else block
    elif how == "insert":
        blocks.insert(first, blocks[second])
    elif how == "remove" and len(blocks) > 1:
        blocks.pop(first)
    elif how == "copy":
        blocks[first] = blocks[second]
    elif how == "swap":
        blocks[first], blocks[second] = blocks[second], blocks[first]


@fuzz
@given(changes=st.lists(CHANGE, min_size=1, max_size=6))
def test_any_change_with_right_checksums_is_read_inside_the_file_or_refused(changes, place):
    blocks = [WHOLE[at : at + 512] for at in range(0, len(WHOLE), 512)]
    for change in changes:
        changed(blocks, change)
    data = b"".join(blocks)
    for name, start, size in opened(data, place) or ():
        assert 512 <= start <= start + size <= len(data)
        assert name and not name.startswith("/") and ".." not in name.split("/")


@fuzz
@given(
    header_bytes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 10_000),
)
def test_any_change_to_an_index_gives_the_same_samples(header_bytes, cut, place):
    shard = place / "y.tar"
    shard.write_bytes(WHOLE)
    expected, version = index_file.open_index(shard)
    file = index_file.index_path(shard)
    data = bytearray(file.read_bytes())
    for at, value in header_bytes:
        data[at % len(data)] = value
    file.write_bytes(bytes(data[:cut]))
    index, _ = index_file.open_index(shard)
    assert all((a == b).all() for a, b in zip(index, expected))
    assert index_file.load_index(shard, version) is not None


def test_reading_a_tar_reads_headers_only(tmp_path, photo_folder, monkeypatch):
    """Not the images between them."""
    written = write_shards([open_source(str(photo_folder))], tmp_path / "out")
    file = written / "0000.tar"
    read = []
    monkeypatch.setattr(os, "pread", lambda fd, n, at, pread=os.pread: read.append(n) or pread(fd, n, at))
    with file.open("rb") as tar:
        found = list(members(tar.fileno(), file.stat().st_size))
    assert len(found) == 3 * 24 and len(read) == 3 * 24 + 2 and max(read) <= 1024
    assert build_index([], read.append).num_samples == 0
