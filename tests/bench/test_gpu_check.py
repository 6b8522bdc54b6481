"""`make gpu-check` without a GPU: its plan, its refusal, its record."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from misplace.bench import build_info, gpu_check, run
from misplace.bench.data import command as data_command
from misplace.bench.gpu_check import Step
from misplace.bench.profile.command import configure as configure_profile
from misplace.bench.registry import cases_of, op_names
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
    lines = {line.partition(":")[0]: line for line in capsys.readouterr().out.splitlines()}
    benches = [f"bench-{name}" for name in (*op_names(), "data", "data-no-jpeg-engine")]
    profiles = ["profile-moco_v3_dilemma", "profile-moco_v3"]
    assert list(lines) == ["build", "info", "sources", "tests", *benches, "recipes", "pretrain", *profiles]
    assert "setup.py build_ext --inplace" in lines["build"]
    assert "csrc/cuda/token_plan.cu" in lines["sources"]
    assert "-m gpu" in lines["tests"]
    assert "--against eager,compile" in lines["bench-token_plan"]
    assert "--steps 60" in lines["pretrain"]
    assert "--model small --data.batch-size 512 --model.image-size 224" in lines["profile-moco_v3"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rehearsed", [True, False])
def test_planned_commands_are_understood(tmp_path, rehearsed):
    """The options that the plan gives to other commands still exist there."""
    device = "cpu" if rehearsed else "cuda"
    options = gpu_check.Options(device=device, steps=7, batch_size=32, image_size=48)
    steps = {step.name: step.command for step in gpu_check.plan(options, tmp_path, tmp_path / "runs")}
    command = steps["pretrain"]
    config = configure(list(command[command.index("pretrain") + 1 :]))
    assert (config.run.steps, config.data.batch_size, config.run.device) == (7, 32, device)
    assert not config.run.report
    for name in ("moco_v3", "moco_v3_dilemma"):
        command = steps[f"profile-{name}"]
        config = configure_profile(list(command[command.index("profile") + 1 :]))
        assert (config.recipe, config.data.batch_size, config.model.image_size) == (name, 32, 48)
        assert config.run.out == tmp_path / name
    command = steps["bench-token_plan"]
    bench = parse(run.Options, list(command[command.index("bench") + 1 :]), prog="bench")
    assert bench.ops == ("token_plan",)
    assert bench.tiny is (device == "cpu")
    assert bench.json == tmp_path / "bench-token_plan.json"
    command = steps["bench-data-no-jpeg-engine"]
    bench = parse(data_command.Options, list(command[command.index("data") + 1 :]), prog="bench data")
    assert bench.device == device and not bench.hardware_decode and bench.tiny is (device == "cpu")


def test_every_planned_peer_exists(tmp_path):
    """`step` has no compiled peer; asking it for one would end the measurement before it begins."""
    steps = {step.name: step.command for step in gpu_check.plan(gpu_check.Options(), tmp_path, tmp_path)}
    for op in op_names():
        command = steps[f"bench-{op}"]
        against = command[command.index("--against") + 1].split(",")
        peers = {peer for case in cases_of(op, tiny=False) for peer in case.peers}
        assert against[0].startswith("eager") and set(against) <= peers


def test_the_gpu_step_picks_marked_tests_and_those_of_a_device(tmp_path):
    """And skips them where there is no GPU."""
    shutil.copy(gpu_check.CHECKOUT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a CUDA device\n")
    (tmp_path / "test_gpu_of_cuda.py").write_text(
        "import pytest, torch\n"
        "@pytest.mark.gpu\ndef test_marked(): torch.cuda.current_device()\n"
        "@pytest.mark.parametrize('device', ['cpu', 'cuda'])\ndef test_on(device): torch.empty(1, device=device)\n"
        "@pytest.mark.parametrize('where', [('cuda', 'triton')])\ndef test_at(where): torch.cuda.current_device()\n"
        "@pytest.mark.parametrize('x', [torch.zeros(2), (torch.zeros(2), 1)])\ndef test_other(x): pass\n"
    )
    (step,) = [s for s in gpu_check.plan(gpu_check.Options(), tmp_path, tmp_path) if s.name == "tests"]
    chosen = step.command[step.command.index("-m", 3) :][:2]
    command = [PYTHON, "-m", "pytest", "-v", "-p", "no:cacheprovider", *chosen, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    outcomes = re.findall(r"::(\S+) (PASSED|SKIPPED)", done.stdout)
    outcome = "PASSED" if torch.cuda.is_available() else "SKIPPED"
    assert outcomes == [(name, outcome) for name in ("test_marked", "test_on[cuda]", "test_at[where0]")], done.stdout


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
    assert summary["steps"]["endless"]["reason"] == "cut off: the time of the whole check was used up"
    assert summary["steps"]["endless"]["seconds"] < 30


def test_a_step_beyond_its_own_time_leaves_time_to_the_others(tmp_path, monkeypatch):
    endless = (PYTHON, "-c", "import time; time.sleep(60)")
    steps = [Step("endless", endless, 0.001), Step("good", (PYTHON, "-c", "print(1)"))]
    code, _, summary = record(tmp_path, monkeypatch, lambda runs: steps)
    assert code == 1
    assert summary["steps"]["endless"]["reason"] == "cut off: its share of the time was used up"
    assert summary["steps"]["good"]["ok"]


def test_rows_and_profiled_steps_are_gathered(tmp_path, monkeypatch):
    def steps(runs):
        folder = tmp_path / "record"
        write = "import os\nopen('{0}/bench-a.json', 'w').write('[1, 2]')\n"
        write += "open('{0}/bench-b.json', 'w').write('[3]')\n"
        write += "os.mkdir('{0}/moco_v3')\nopen('{0}/moco_v3/profile.json', 'w').write('{{\"step\": {{\"ms\": 5}}}}')"
        return [Step("some", (PYTHON, "-c", write.format(folder)))]

    code, folder, summary = record(tmp_path, monkeypatch, steps)
    assert code == 0
    assert json.loads((folder / "bench.json").read_text()) == [1, 2, 3]
    assert summary["bench"] == {"a": 2, "b": 1}
    assert summary["profile"] == {"moco_v3": {"ms": 5}, "moco_v3_dilemma": {}}


def test_build_info_tells_every_implementation():
    info = build_info.build_info()
    assert info["torch"] == torch.__version__
    assert info["implementations"]["reference"] == "available"
    assert {"native", "triton", "xformers"} <= set(info["implementations"])
    native = why_unavailable(Impl.NATIVE, torch.device("cpu"))
    assert info["extension"] == native if native else info["extension"]["torch"] in torch.__version__


def test_build_info_refuses_where_the_extension_is_not_built_for_it(monkeypatch, capsys):
    monkeypatch.setattr(build_info, "why_unavailable", lambda impl, device: f"built without {device.type}")
    assert build_info.main([]) == 0
    assert build_info.main(["--require", "cuda"]) == 1
    assert capsys.readouterr().err == "misplace: built without cuda\n"
