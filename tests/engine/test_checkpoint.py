"""Checkpoints: exact, never half written, never believed when damaged."""

import errno
import importlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from misplace.engine import checkpoint
from misplace.engine.checkpoint import CheckpointError, manifest
from misplace.engine.checkpoint.rotation import FORMAT
from misplace.engine.errors import UserError

HERE = Path(__file__).parent
STATE = {
    "epoch": 3,
    "seconds": 12.0625,
    "position": 2**53 + 1,
    "names": ["a", None, True],
    "nested": {"x": 0.1},
}


@pytest.fixture
def kill_points(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("kill_points")


def tensors():
    values = torch.linspace(-3, 3, 60)
    return {"fp32": values.reshape(3, 4, 5), "bf16": values.bfloat16(), "int64": torch.arange(7) - 2**62}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def one_line_about(error, *words):
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text
    return text


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        torch.randn(5, 3, dtype=torch.float64),
        torch.randn(9).to(torch.bfloat16),
        torch.randn(9).half(),
        torch.tensor([-(2**63), 2**63 - 1]),
        torch.tensor([[True], [False]]),
        torch.arange(256, dtype=torch.uint8),
        torch.tensor(3.5),
        torch.tensor(True),
        torch.empty(0, 4),
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0)[::3],
        torch.arange(4.0).expand(3, 4),
        torch.nn.Parameter(torch.ones(2, 2)),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_a_tensor_comes_back_to_the_bit(tmp_path, tensor):
    read = checkpoint.load(checkpoint.save(tmp_path, 0, {"t": tensor}, {}, keep=1)).tensors["t"]
    assert read.dtype == tensor.dtype and read.shape == tensor.shape
    assert torch.equal(bits(read), bits(tensor.detach()))


def test_tensors_that_share_storage_come_back_apart(tmp_path):
    base = torch.arange(10.0)
    shared = {"a": base, "b": base, "head": base[:4], "tail": base[6:], "transposed": base.view(2, 5).t()}
    read = checkpoint.load(checkpoint.save(tmp_path, 1, shared, {}, keep=1)).tensors
    assert all(torch.equal(read[name], shared[name]) for name in shared)
    read["a"][0] = 99.0
    assert read["b"][0] == 0.0 and read["head"][0] == 0.0


def test_layout_and_state(tmp_path):
    path = checkpoint.save(tmp_path / "new" / "checkpoints", 120, tensors(), STATE, keep=2)
    assert path.name == "step-00000120"
    assert sorted(os.listdir(path)) == ["manifest.json", "state.json", "tensors.safetensors"]
    read = checkpoint.load(path)
    assert read.step == 120 and read.state == STATE and read.state["position"] == 2**53 + 1
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tensors().items())
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["state.json"]["size"] == (path / "state.json").stat().st_size


@pytest.mark.parametrize("state", [{"betas": (0.9, 0.95)}, {3: "x"}, {"loss": float("nan")}, {"t": torch.ones(1)}, []])
def test_a_state_that_would_come_back_changed_is_refused(tmp_path, state):
    with pytest.raises((ValueError, TypeError)):
        checkpoint.save(tmp_path, 1, {}, state, keep=1)
    assert checkpoint.latest(tmp_path) is None


def test_the_last_ones_are_kept(tmp_path):
    for step in (1, 2, 3, 100_000_000, 100_000_001):
        checkpoint.save(tmp_path, step, tensors(), {}, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-100000000", "step-100000001"]
    assert checkpoint.load(checkpoint.latest(tmp_path)).step == 100_000_001


def test_what_was_just_saved_is_never_pruned(tmp_path):
    for step in (10, 20, 5):
        checkpoint.save(tmp_path, step, tensors(), {}, keep=1)
    assert (tmp_path / "step-00000005").is_dir() and (tmp_path / "step-00000020").is_dir()


def test_the_same_step_again_replaces(tmp_path):
    checkpoint.save(tmp_path, 7, {"t": torch.zeros(3)}, {"n": 1}, keep=2)
    path = checkpoint.save(tmp_path, 7, {"t": torch.ones(3)}, {"n": 2}, keep=2)
    read = checkpoint.load(path)
    assert read.state == {"n": 2} and torch.equal(read.tensors["t"], torch.ones(3))
    assert os.listdir(tmp_path) == ["step-00000007"]


def test_latest_ignores_everything_else(tmp_path):
    assert checkpoint.latest(tmp_path / "absent") is None
    checkpoint.save(tmp_path, 3, {}, {}, keep=1)
    for name in (".tmp-step-00000009", ".old-step-00000008", "step-9", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000099").write_text("a file")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000003"


def test_kill_9_at_every_point_of_a_save(tmp_path):
    """0 lost, 0 differing bits, and the next save clears up."""
    run = subprocess.run(
        [sys.executable, HERE / "kill_saves.py", tmp_path], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert [result["problems"] for result in results.values()] == [[], [], [], []]
    # at the least: 1 mkdir, 3 writes, 5 fsyncs, 1 rename; then what is to be cleared, swapped and pruned
    assert results["first_save"]["kills"] >= 10
    assert min(results[name]["kills"] for name in ("next_save", "same_step", "after_killed_save")) >= 15


def test_a_power_cut_finds_every_byte_on_disk_before_its_name(tmp_path, kill_points):
    checkpoint.save(tmp_path, 1, tensors(), STATE, keep=1)
    calls = kill_points.trace(lambda: checkpoint.save(tmp_path, 2, tensors(), STATE, keep=1))
    published = calls.index(("rename", ".tmp-step-00000002"))
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        last_write = max(i for i, call in enumerate(calls) if call == ("write", name))
        assert last_write < calls.index(("fsync", name)) < published
    assert calls.index(("fsync", ".tmp-step-00000002")) < published
    parent_synced = calls.index(("fsync", tmp_path.name), published)
    assert parent_synced < calls.index(("rename", "step-00000001"))


@pytest.mark.parametrize("same_step", [False, True], ids=["next step", "same step"])
def test_a_failing_call_anywhere_leaves_a_whole_checkpoint(tmp_path, kill_points, same_step):
    step = 10 if same_step else 20
    k = 0
    while True:
        k += 1
        folder = tmp_path / str(k)
        checkpoint.save(folder, 10, {"t": torch.zeros(4)}, {"n": 10}, keep=1)
        undo = kill_points.install(k, errno.ENOSPC)
        try:
            checkpoint.save(folder, step, {"t": torch.ones(4)}, {"n": 20}, keep=1)
        except CheckpointError as error:
            assert "\n" not in str(error) and "No space left on device" in str(error)
        else:
            break
        finally:
            undo()
        assert checkpoint.load(checkpoint.latest(folder)).state["n"] in (10, 20)
        checkpoint.save(folder, 30, {}, {"n": 30}, keep=1)
        assert os.listdir(folder) == ["step-00000030"]
    assert k > 12


def test_a_file_too_large_for_the_disk(tmp_path):
    """The kernel refuses in the middle of a write, as it does on a full disk."""
    before = checkpoint.save(tmp_path, 1, tensors(), {}, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(CheckpointError) as error:
            checkpoint.save(tmp_path, 2, {"t": torch.zeros(100_000)}, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line_about(error, "cannot save step 2", "File too large", "step-00000001 is intact")
    assert os.listdir(tmp_path) == [before.name] and checkpoint.load(before).step == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError) as error:
        checkpoint.save(tmp_path / "checkpoints", 2, tensors(), {}, keep=1)
    one_line_about(error, tmp_path / "checkpoints", "there is no earlier checkpoint")


def two_checkpoints(folder):
    """Steps 100 and 120; returns the folder of the latter and the bytes of its files."""
    checkpoint.save(folder, 100, tensors(), STATE, keep=2)
    path = checkpoint.save(folder, 120, tensors(), STATE, keep=2)
    return path, {file: file.read_bytes() for file in sorted(path.iterdir())}


def test_every_flipped_bit_of_the_manifest_is_found(tmp_path):
    path, files = two_checkpoints(tmp_path)
    good, listed = files[path / "manifest.json"], {"state.json", "tensors.safetensors"}
    assert manifest.decode(good, FORMAT, listed).step == 120
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            manifest.decode(bytes(damaged), FORMAT, listed)


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend"])
def test_damage_anywhere_is_found(tmp_path, damage):
    path, files = two_checkpoints(tmp_path)
    dice = random.Random(damage)
    for _ in range(100):
        file, good = dice.choice(list(files.items()))
        bad = bytearray(good)
        if damage == "flip":
            bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        elif damage == "truncate":
            del bad[dice.randrange(len(bad)) :]
        else:
            bad += dice.randbytes(dice.randrange(1, 100_000))
        file.write_bytes(bad)
        with pytest.raises(CheckpointError) as error:
            checkpoint.load(path)
        one_line_about(error, file, f"remove {path} to resume from step 100")
        file.write_bytes(good)
    assert checkpoint.load(path).step == 120


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    path, _ = two_checkpoints(tmp_path)
    shutil.rmtree(tmp_path / "step-00000100")
    (path / name).unlink()
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    one_line_about(error, path / name, "is missing", "start again with --overwrite or another --out")


def rewrite(path, **changes):
    """Gives the manifest other fields and the right digest for them."""
    fields = json.loads((path / "manifest.json").read_bytes())
    del fields["sha256"]
    (path / "manifest.json").write_bytes(manifest._encode({**fields, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "format version 2, this misplace reads 1"),
        ({"format": "misplace-capture"}, "is not the manifest of a misplace-checkpoint"),
        ({"step": 121}, "holds step 121; rename it to step-00000121"),
        ({"step": "120"}, "does not list"),
        ({"files": {}}, "does not list"),
        ({"files": {"../../../etc/passwd": {"size": 1, "sha256": "0"}}}, "does not list"),
        ({"files": [1]}, "lacks a field"),
        ({"files": {"state.json": {"size": 1}}}, "lacks a field"),
    ],
)
def test_a_manifest_of_another_kind(tmp_path, changes, words):
    path, _ = two_checkpoints(tmp_path)
    rewrite(path, **changes)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    one_line_about(error, path, words)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b"x" * 10_000_000])
def test_a_manifest_of_nonsense(tmp_path, content):
    path, _ = two_checkpoints(tmp_path)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    one_line_about(error, path / "manifest.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"[1]"),
        ("state.json", b"{"),
        ("tensors.safetensors", b"\xff" * 64),
        ("tensors.safetensors", b"\x08\0\0\0\0\0\0\0{}      "[:12]),
    ],
)
def test_nonsense_under_a_right_digest(tmp_path, name, content):
    """Digests do not make a hostile file safe: what is parsed is plain data, and errors stay in one line."""
    path, files = two_checkpoints(tmp_path)
    (path / name).write_bytes(content)
    entries = {
        file.name: vars(manifest.FileEntry.of(file.read_bytes())) for file in files if file.name != "manifest.json"
    }
    rewrite(path, files=entries)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    one_line_about(error, path / name)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    path, _ = two_checkpoints(tmp_path)
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    one_line_about(error, path / "state.json", "is not a file")


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(tmp_path / "step-00000001")
    one_line_about(error, tmp_path / "step-00000001", "no such checkpoint")


def test_a_copy_under_another_name_loads(tmp_path):
    path, _ = two_checkpoints(tmp_path)
    shutil.copytree(path, tmp_path / "best")
    assert checkpoint.load(tmp_path / "best").step == 120
