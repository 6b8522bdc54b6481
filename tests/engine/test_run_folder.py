"""A run folder is never overwritten unless asked, never written by two, and says what it was run with."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from misplace.engine.errors import UserError
from misplace.engine.run_folder import RunFolder, environment

HOLDER = """
import os, sys, time
from misplace.engine.run_folder import RunFolder
run = RunFolder.create(sys.argv[1])
run.write_config({"recipe": "x"})
if os.fork() == 0:  # a data worker, which outlives a killed trainer
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def make_run(path):
    with RunFolder.create(path) as run:
        run.write_config({"recipe": "moco_v3", "widths": (1, 2)})
        run.checkpoints.mkdir()
        (run.checkpoints / "old").write_text("old")
        run.metrics.write_text('{"step": 1}\n')
    return run


def refused(*words, path, **how):
    with pytest.raises(UserError) as error:
        RunFolder.create(path, **how)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_new_run_in_a_new_or_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new" / "run", tmp_path / "empty"):
        with RunFolder.create(path) as run:
            assert not run.resumed
            run.write_config({"recipe": "moco_v3", "widths": (1, 2)})
        assert RunFolder.open(path).read_config() == {"recipe": "moco_v3", "widths": [1, 2]}


def test_a_run_is_not_overwritten_unless_asked(tmp_path):
    run = make_run(tmp_path / "run")
    refused("already holds a run", "--resume", "--overwrite", "--out", path=run.path)
    assert (run.checkpoints / "old").read_text() == "old"
    with RunFolder.create(run.path, resume=True) as resumed:
        assert resumed.resumed and resumed.read_config()["recipe"] == "moco_v3"
        assert (run.checkpoints / "old").exists()
    (run.path / "notes.txt").write_text("mine")
    with RunFolder.create(run.path, overwrite=True) as fresh:
        assert not fresh.resumed
        assert sorted(os.listdir(run.path)) == [".lock", "notes.txt"]


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for how in ({}, {"overwrite": True}, {"resume": True}):
        refused("holds files but no run", "--out", path=tmp_path, **how)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_what_cannot_be_a_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused("is a file", path=tmp_path / "file")
    refused("Not a directory", path=tmp_path / "file" / "run")
    refused("no run to resume", path=tmp_path / "absent", resume=True)
    refused("exclude each other", path=tmp_path / "absent", resume=True, overwrite=True)
    assert not (tmp_path / "absent").exists()
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_a_run_killed_before_its_config_can_be_started_again(tmp_path):
    RunFolder.create(tmp_path).release()
    (tmp_path / ".tmp-config.json").write_text("{")
    for how in ({}, {"resume": True}):
        with RunFolder.create(tmp_path, **how) as run:
            assert not run.resumed


def test_one_writer_also_within_a_process(tmp_path):
    run = RunFolder.create(tmp_path)
    refused(f"process {os.getpid()} is writing this run", path=tmp_path)
    run.release()
    RunFolder.create(tmp_path).release()


def test_kill_9_frees_the_folder_though_a_worker_lives_on(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        refused(f"process {holder.pid} is writing this run", path=tmp_path, resume=True)
        refused("is writing this run", path=tmp_path, overwrite=True)
        assert (tmp_path / "config.json").exists()
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # alive
        with RunFolder.create(tmp_path, resume=True) as run:
            assert run.resumed
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)


def test_the_environment_names_versions_machine_and_ops(tmp_path):
    with RunFolder.create(tmp_path) as run:
        run.write_environment(device="cpu", implementations={"gelu": "reference", "attention": "torch"})
        first = json.loads(run.environment.read_text())
        run.write_environment(device="cpu", implementations={"gelu": "torch"})
        second = json.loads(run.environment.read_text())
    assert first["versions"]["torch"] == torch.__version__ and first["versions"]["misplace"]
    assert set(first["versions"]) >= {"triton", "xformers", "nvidia-dali-cuda130"}
    assert first["implementations"] == {"gelu": "reference", "attention": "torch"}
    assert first["device"] == "cpu" and first["threads"] == torch.get_num_threads() and first["cpu"]
    started = time.strptime(first["started_utc"], "%Y-%m-%dT%H:%M:%S+00:00")
    assert abs(time.mktime(started) - time.mktime(time.gmtime())) < 600
    assert second["implementations"] == {"gelu": "torch"}
    assert second["earlier"] == [{key: value for key, value in first.items() if key != "earlier"}]


def test_the_commit_is_that_of_our_own_checkout_only(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "engine" / "run_folder" / "environment.py"
    package.parent.mkdir(parents=True)
    package.write_text("one")
    monkeypatch.setattr(environment, "__file__", str(package))
    assert environment._checkout() == (None, None)
    git("init", "--quiet")
    assert environment._checkout() == (None, None)
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert environment._checkout() == (git("rev-parse", "HEAD"), False)
    package.write_text("two")
    assert environment._checkout() == (git("rev-parse", "HEAD"), True)
    installed = tmp_path / "venv" / "site-packages" / "misplace" / "engine" / "run_folder" / "environment.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(installed))
    assert environment._checkout() == (None, None)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_config_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        RunFolder.open(tmp_path).read_config()
    assert "config.json" in str(error.value) and "\n" not in str(error.value)
