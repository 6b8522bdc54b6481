"""Every case that the doctor names, made by changing what it looks at."""

import collections
import importlib.metadata
import io
import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from misplace.engine import doctor
from misplace.engine.doctor import machine, packages
from misplace.engine.doctor.finding import note, ok, problem
from misplace.kernels import Impl, cpu_paths, ops
from misplace.kernels.impl import why_unavailable

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def installed(monkeypatch):
    """Sets which distributions are installed: a dict name -> version."""

    def pretend(**versions):
        known = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name):
            if name not in known:
                raise importlib.metadata.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


@pytest.mark.parametrize(
    ("check", "versions", "cuda", "status", "said"),
    [
        ("kymatio", {"kymatio": "0.3.0", "scipy": "1.17.1"}, None, "problem", "scipy<1.17"),
        ("kymatio", {"kymatio": "0.3.0", "scipy": "1.16.3"}, None, "ok", ""),
        ("kymatio", {"kymatio": "0.4.0", "scipy": "1.17.1"}, None, "ok", ""),
        ("kymatio", {}, None, "ok", ""),
        ("dali", {"nvidia_dali": "1.0.0"}, None, "problem", "nvidia-dali-cuda130"),
        ("dali", {"nvidia_dali_cuda130": "2.4.0"}, None, "ok", ""),
        ("dali", {"nvidia_dali": "1.0.0", "nvidia_dali_cuda130": "2.4.0"}, None, "ok", ""),
        ("dali", {"nvidia_dali_cuda120": "2.4.0"}, None, "note", "nvidia-dali-cuda130"),
        ("dali", {}, None, "ok", ""),
        ("xformers", {"xformers": "0.0.35"}, "13.0", "note", "xformers"),
        ("xformers", {"xformers": "0.0.35"}, "12.8", "ok", ""),
        ("xformers", {"xformers": "0.0.35"}, None, "note", "CUDA build of torch"),
        ("xformers", {}, "13.0", "ok", ""),
        ("pillow", {"pillow": "12.1.0"}, None, "problem", "pillow>=12.2"),
        ("pillow", {"pillow": "12.2.0"}, None, "ok", ""),
        ("pillow", {}, None, "problem", "pillow>=12.2"),
        ("triton", {}, None, "note", "triton>=3.6"),
        ("triton", {"triton": "3.5.1"}, None, "problem", "triton>=3.6"),
        ("triton", {"triton": "3.6.0"}, None, "ok", ""),
        ("torchvision", {}, None, "ok", ""),
    ],
)
def test_packages(installed, monkeypatch, check, versions, cuda, status, said):
    installed(**versions)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = getattr(packages, check)()
    assert found.status == status
    assert said in found.mend
    assert bool(found.mend) == (status != "ok")


def test_release_reads_any_version():
    assert packages.release("1.17.0rc1") == (1, 17, 0)
    assert packages.release("2.13.0+cpu") == (2, 13, 0)
    assert packages.release("13") == (13,)


def test_old_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    assert packages.pytorch().status == "problem"


def test_torchvision_of_another_build(installed, monkeypatch, tmp_path):
    installed(torchvision="0.28.0")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    found = packages.torchvision()
    assert found.status == "note" and "nms" in found.message and "same build" in found.mend


def test_native_extension_says_why_it_is_missing(monkeypatch):
    monkeypatch.setattr(packages, "why_unavailable", lambda impl, device: f"no {impl} on {device.type}")
    found = packages.native_extension()
    assert found.status == "note" and found.message == "no native on cpu" and "ninja" in found.mend
    monkeypatch.setattr(packages, "why_unavailable", lambda impl, device: None)
    assert packages.native_extension().status == "ok"


def test_cpu_paths_here():
    paths = cpu_paths()
    if why_unavailable(Impl.NATIVE, torch.device("cpu")):
        assert paths == {}
    else:
        assert set(paths) >= {"patch_embed", "token_bce", "adamw_ema"} and all(paths.values())
        assert paths["adamw_ema"] in ("avx512", "avx2", "plain")
    for op, path in paths.items():
        assert f"{op}: {path}" in packages.native_paths().message


def test_cpu_paths_without_the_extension(monkeypatch):
    monkeypatch.setattr(ops, "why_unavailable", lambda impl, device: f"no {impl} on {device.type}")
    assert cpu_paths() == {}
    assert packages.native_paths() == ok("CPU paths", "none: no native kernels")


def test_cpu_paths_of_an_extension_from_older_sources(monkeypatch):
    def missing():
        raise NotImplementedError("no fallback function is registered for schema misplace::adamw_ema_path")

    monkeypatch.setattr(packages, "cpu_paths", missing)
    found = packages.native_paths()
    assert found.status == "problem" and "older" in found.message and found.mend == packages.REBUILD


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_bf16", "ok", "AMX bf16, AVX-512 bf16"),
        ("fpu avx2 avx512f", "note", "AVX-512, AVX2: bf16 is emulated"),
        ("fpu", "note", "no vector features"),
    ],
)
def test_processor(monkeypatch, tmp_path, flags, status, said):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    found = machine.processor()
    assert found.status == status and said in found.message


def test_processor_of_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "none")
    assert machine.processor().status == "note"


def test_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert machine.threads().mend == "set OMP_NUM_THREADS=2"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert machine.threads().status == "ok"


def test_build_tools(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda tool: None)
    found = machine.build_tools()
    assert found.status == "note" and "g++ and ninja not on PATH; no nvcc" in found.message
    monkeypatch.setattr(machine.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    assert machine.build_tools().status == "ok"


def test_space(monkeypatch):
    sizes = {"/dev/shm": Usage(64 * 2**20, 0, 64 * 2**20)}
    small = Usage(2**40, 0, 2**30)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: sizes.get(str(path), small))
    monkeypatch.setattr(machine.Path, "is_dir", lambda self: True)
    assert "1.0 GiB free" in machine.disk_space().message and machine.disk_space().status == "note"
    assert "shm-size" in machine.shared_memory().mend
    sizes["/dev/shm"] = small = Usage(2**35, 0, 2**35)
    assert machine.shared_memory().status == "ok"


def test_no_shared_memory_on_this_system(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    assert machine.shared_memory().status == "ok"


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MISPLACE_DATA", str(tmp_path / "new" / "data"))
    assert machine.data_folder_writable() == ok("data folder", f"{tmp_path}/new/data can be written")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MISPLACE_DATA", str(tmp_path / "file"))
    assert machine.data_folder_writable().status == "problem"
    monkeypatch.setenv("MISPLACE_DATA", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "MISPLACE_DATA" in machine.data_folder_writable().mend


def test_fashion_mnist(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "DEBIAN_FOLDER", tmp_path)
    assert "dataset-fashion-mnist" in machine.fashion_mnist().mend
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(b"")
    assert machine.fashion_mnist().status == "ok"


@pytest.mark.parametrize("bf16", [True, False])
def test_gpu(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Device {i}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    found = machine.devices()
    assert found.message.startswith("Device 0, Device 1") and found.status == ("ok" if bf16 else "note")


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "driver" in machine.devices().mend
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CUDA build" in machine.devices().mend


def printed(monkeypatch, findings):
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    console = Console(width=100, record=True, file=io.StringIO())
    return doctor.run(console), console.export_text()


def test_run_prints_every_finding_and_its_mend(monkeypatch):
    findings = [ok("one", "as it should be"), note("two", "a [red]bracket[/red]", "mend [two]")]
    code, text = printed(monkeypatch, findings)
    assert code == 0
    for part in ("one", "as it should be", "a [red]bracket[/red]", "-> mend [two]", "0 problems, 1 note"):
        assert part in text


def test_run_tells_by_its_exit_code(monkeypatch):
    code, text = printed(monkeypatch, [problem("one", "broken", "mend it")])
    assert code == 1 and "1 problem," in text


def test_diagnose_here_mends_everything_that_is_not_ok():
    findings = doctor.diagnose()
    assert len({found.name for found in findings}) == len(packages.CHECKS) + len(machine.CHECKS)
    for found in findings:
        assert found.message and bool(found.mend) == (found.status != "ok")


def test_doctor_imports_no_optional_package():
    code = (
        "import sys, misplace.engine.doctor\n"
        "print([m for m in ('xformers', 'nvidia', 'kymatio', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
