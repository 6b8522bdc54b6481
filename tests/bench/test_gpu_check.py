"""`make gpu-check` without a GPU: its plan, its refusal, its record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from misplace.bench import build_info, gpu_check, run, trace
from misplace.bench.gpu_check import Step
from misplace.engine.commands.parsing import parse
from misplace.engine.commands.pretrain import configure
from misplace.engine.errors import UserError
from misplace.kernels.impl import Impl, why_unavailable

PYTHON = sys.executable
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@without_cuda
def test_refuses_without_cuda_in_one_line(tmp_path):
    command = [PYTHON, "-m", "misplace.bench.gpu_check", "--out", str(tmp_path / "record")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("misplace: gpu-check: no CUDA device here")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "record").exists()


def test_dry_run_shows_every_step_and_writes_nothing(tmp_path, capsys):
    assert gpu_check.main(["--dry-run", "--out", str(tmp_path / "record")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["build", "tests", "bench", "pretrain", "profile"]
    assert "-m gpu" in lines[1]
    assert "--against eager,compile" in lines[2]
    assert "--steps 60" in lines[3]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_planned_commands_are_understood(tmp_path, device):
    """The options that the plan gives to other commands still exist there."""
    options = gpu_check.Options(device=device, steps=7, batch_size=32)
    steps = {step.name: step.command for step in gpu_check.plan(options, tmp_path, tmp_path / "runs")}
    for name, length in (("pretrain", 7), ("profile", 4)):
        command = steps[name]
        config = configure(list(command[command.index("pretrain") + 1 :]))
        assert (config.run.steps, config.data.batch_size, config.run.device) == (length, 32, device)
        assert not config.run.report
    command = steps["bench"]
    bench = parse(run.Options, list(command[command.index("bench") + 1 :]), prog="bench")
    assert bench.tiny is (device == "cpu")
    assert bench.json == tmp_path / "bench.json"


def test_a_record_is_never_overwritten(tmp_path):
    with pytest.raises(UserError, match="exists; name another with --out"):
        gpu_check.main(["--device", "cpu", "--out", str(tmp_path)])


def test_default_folder_counts_up(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "RECORDS", tmp_path)
    first = gpu_check.default_folder("cpu")
    first.mkdir()
    assert gpu_check.default_folder("cpu").name == f"{first.name}-2"


def record(tmp_path, monkeypatch, steps, *arguments: str) -> tuple[int, Path, dict]:
    """Exit code, folder and summary of a check of other steps."""
    folder = tmp_path / "record"
    monkeypatch.setattr(gpu_check, "plan", lambda options, folder, runs: steps(runs))
    code = gpu_check.main(["--device", "cpu", "--out", str(folder), *arguments])
    return code, folder, json.loads((folder / "summary.json").read_text())


def test_record_holds_outputs_and_metrics(tmp_path, monkeypatch):
    def steps(runs):
        write = "import os, sys; os.mkdir(sys.argv[1]); print('trained')\n"
        write += "open(sys.argv[1] + '/metrics.jsonl', 'w').write('{\"step\": 1}\\n{\"images_per_s\": 7}\\n')"
        return [
            Step("hello", (PYTHON, "-c", "print('hello')")),
            Step("pretrain", (PYTHON, "-c", write, str(runs / "pretrain"))),
        ]

    code, folder, summary = record(tmp_path, monkeypatch, steps)
    assert code == 0
    assert (folder / "hello.txt").read_text() == "hello\n"
    assert summary["pretrain"] == {"images_per_s": 7}
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert all(outcome["ok"] for outcome in summary["steps"].values())
    assert summary["environment"]["device"]


def test_a_failed_step_fails_the_check_and_the_rest_still_runs(tmp_path, monkeypatch):
    fail = "import sys; print('broken', file=sys.stderr); sys.exit(3)"
    steps = [Step("bad", (PYTHON, "-c", fail)), Step("good", (PYTHON, "-c", "print(1)"))]
    code, folder, summary = record(tmp_path, monkeypatch, lambda runs: steps)
    assert code == 1
    assert summary["steps"]["bad"]["reason"] == "exit code 3, see bad.txt"
    assert summary["steps"]["good"]["ok"]
    assert (folder / "bad.txt").read_text() == "broken\n"


def test_a_step_beyond_the_time_is_cut_off(tmp_path, monkeypatch):
    steps = [Step("endless", (PYTHON, "-c", "import time; time.sleep(60)"))]
    code, _, summary = record(tmp_path, monkeypatch, lambda runs: steps, "--minutes", "0.01")
    assert code == 1
    assert "cut off" in summary["steps"]["endless"]["reason"]
    assert summary["steps"]["endless"]["seconds"] < 30


def test_trace_profiles_a_command(tmp_path):
    command = ["bench", "token_plan", "--tiny", "--rounds", "1", "--device", "cpu", "--impl", "reference"]
    assert trace.main([str(tmp_path), *command]) == 0
    assert "aten::argsort" in (tmp_path / "profile.txt").read_text()
    assert (tmp_path / "trace.json.gz").stat().st_size > 0


def test_build_info_tells_every_implementation():
    info = build_info.build_info()
    assert info["torch"] == torch.__version__
    assert info["implementations"]["reference"] == "available"
    assert {"native", "triton", "xformers"} <= set(info["implementations"])
    native = why_unavailable(Impl.NATIVE, torch.device("cpu"))
    assert info["extension"] == native if native else info["extension"]["torch"] in torch.__version__
