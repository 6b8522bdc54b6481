"""Writing tar shards: whole or not at all, and each mistake in one line."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from misplace.engine.cli import main
from misplace.engine.data import open_source
from misplace.engine.data.shards import write_shards
from misplace.engine.errors import UserError


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_write_leaves_nothing(photo_folder, tmp_path):
    def interrupt(done, total):
        assert total == 24
        if done == 10:
            raise KeyboardInterrupt

    source, place = open_source(str(photo_folder)), tmp_path / "place"
    with pytest.raises(KeyboardInterrupt):
        write_shards([source], place / "out", shard_bytes=9_000, progress=interrupt)
    assert leftovers(place) == []
    calls = []
    write_shards([source], place / "out", shard_bytes=9_000, progress=lambda *call: calls.append(call))
    assert leftovers(place) == ["out"] and calls[-1] == (24, 24) and len(calls) == 24


def killed_write(source, out, at):
    def kill(done, _):
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    write_shards([source], out, shard_bytes=9_000, progress=kill)


@pytest.mark.parametrize("at", [1, 13, 24])
def test_a_killed_write_leaves_nothing_that_reads_as_complete(photo_folder, tmp_path, at):
    source, place = open_source(str(photo_folder)), tmp_path / "place"
    process = multiprocessing.get_context("fork").Process(target=killed_write, args=(source, place / "out", at))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [name.partition("unfinished-")[0] for name in leftovers(place)] == [".out."]
    with pytest.raises(UserError, match="does not exist"):
        open_source(str(place / "out"))
    assert len(open_source(str(write_shards([source], place / "out")))) == 24


def test_a_write_that_fails_is_one_line_and_leaves_nothing(photo_folder, tmp_path, monkeypatch, one_line):
    place = tmp_path / "place"
    source = open_source(str(photo_folder))
    (photo_folder / "dog" / "05.jpg").unlink()
    with pytest.raises(UserError) as error:
        write_shards([source], place / "out")
    assert "dog/05.jpg cannot be read" in one_line(error) and "data verify" in one_line(error)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError) as error:
            write_shards([open_source(str(photo_folder))], place / "out")
    assert "out cannot be written: No space left on device" in one_line(error)
    assert leftovers(place) == []


def test_where_shards_are_not_written(photo_folder, tmp_path, one_line):
    source = open_source(str(photo_folder))
    (tmp_path / "file").write_bytes(b"")
    for out, says in (
        (photo_folder, "is not empty"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "cannot be written"),
        (Path("/proc"), "is not empty"),
    ):
        with pytest.raises(UserError) as error:
            write_shards([source], out)
        assert says in one_line(error)
    with pytest.raises(UserError, match="ask for more"):
        write_shards([source], tmp_path / "out", shard_bytes=0)
    (tmp_path / "ready").mkdir()
    assert len(open_source(str(write_shards([source], tmp_path / "ready")))) == 24


def test_the_command(corrupt_folder, bad_files, tmp_path, capfd, refused):
    out = tmp_path / "shards"
    assert main(["data", "shard", str(corrupt_folder), str(out), "--shard-size-mb", "1"]) == 0
    assert f"32 images: {out}" in capfd.readouterr().out
    assert main(["data", "verify", str(out)]) == 1
    text = capfd.readouterr().out
    assert f"32 images, {len(bad_files)} bad" in text and "0000.tar:00000000.jpg: the file is empty" in text
    assert "is not empty" in refused("data", "shard", corrupt_folder, out)
    assert "does not exist" in refused("data", "shard", tmp_path / "gone", tmp_path / "x")
    assert "--shard-size-mb 0" in refused("data", "shard", corrupt_folder, tmp_path / "x", "--shard-size-mb", 0)
    assert "OUT" in refused("data", "shard", corrupt_folder)
    assert "'pack' is not one of render, verify, shard" in refused("data", "pack")
