"""Every .cu file compiles for three GPUs without a spill, and the host code beside it compiles too; no GPU needed."""

import functools
import runpy
import subprocess
from pathlib import Path

import pytest
import torch

from misplace.kernels.testing import nvcc

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
HOST_CODE = sorted((CSRC / "cuda").glob("*.cpp"))
needs_nvcc = pytest.mark.skipif(nvcc.why_not() is not None, reason=str(nvcc.why_not()))

SPILLING = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3onePf' for 'sm_80'
ptxas info    : Function properties for _Z3onePf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Compile time = 13.133 ms
ptxas info    : Compiling entry function '_Z3twoPf' for 'sm_90a'
ptxas info    : Function properties for _Z3twoPf
    16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 12424 bytes smem
"""


@functools.cache
def kernels_of(source: Path) -> list[nvcc.Kernel]:
    """One call of nvcc for all architectures."""
    return nvcc.compile_kernels(source, CSRC)


def test_report_of_the_assembler_is_understood():
    one, two = nvcc.parse(SPILLING)
    assert one == (one.name, "sm_80", 8, 0, 0, 0)
    assert two == (two.name, "sm_90a", 255, 16, 56, 12424)
    assert "one" in one.name and "two" in two.name


def test_there_are_sources():
    assert CSRC / "cuda" / "token_plan.cu" in SOURCES


@needs_nvcc
@pytest.mark.parametrize("arch", nvcc.ARCHS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_does_not_spill(source, arch):
    kernels = [kernel for kernel in kernels_of(source) if kernel.arch == arch]
    for kernel in kernels:
        print(kernel)
    assert kernels, "compiled no kernel"
    assert [kernel for kernel in kernels if kernel.spilled or kernel.stack] == []


@needs_nvcc
def test_a_spill_would_be_seen(tmp_path):
    source = tmp_path / "local.cu"
    source.write_text(
        "__global__ void local(int* x, int n) { int a[64]; for (int i = 0; i < 64; ++i) a[i] = x[i];"
        " for (int i = 0; i < n; ++i) a[x[i] & 63] += i; x[n] = a[n & 63]; }\n"
    )
    (kernel,) = nvcc.compile_kernels(source, CSRC, ("sm_80",))
    assert kernel.stack >= 256


@needs_nvcc
@pytest.mark.parametrize("text", ["nonsense\n", "#include <ATen/core/Tensor.h>\n"])
def test_what_does_not_compile_is_said(tmp_path, text):
    """Torch's headers too: a kernel's file is torch-free."""
    source = tmp_path / "wrong.cu"
    source.write_text(text)
    with pytest.raises(RuntimeError, match=r"nonsense|ATen/core/Tensor\.h"):
        nvcc.compile_kernels(source, CSRC, ("sm_80",))


@needs_nvcc
@pytest.mark.parametrize("source", HOST_CODE, ids=lambda source: source.stem)
def test_host_code_compiles(source):
    """Without code generation: the CUDA build itself needs a torch that is one."""
    command = [nvcc.find_nvcc(), *nvcc.HOST_FLAGS, f"-I{CSRC}", *nvcc.torch_headers()]
    checked = ["-Xcompiler=-fsyntax-only,-Wall,-Werror", "-c", str(source)]
    done = subprocess.run([*command, *checked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FAKE_NVCC = """#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release 12.6, V12.6.20" ;;
  --list-gpu-code) echo sm_75 sm_80 sm_90 ;;
esac
"""


@pytest.fixture
def setup_py(monkeypatch):
    """The names of setup.py, and under "setup" what it gives to setuptools."""
    given = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    monkeypatch.chdir(CSRC.parent)
    return runpy.run_path(str(CSRC.parent / "setup.py")) | {"setup": given}


@pytest.fixture
def cuda_home(tmp_path) -> Path:
    """A CUDA 12.6 that knows nothing newer than Hopper."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text(FAKE_NVCC)
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    return tmp_path


def modules(setup_py) -> list:
    """What setup.py would build."""
    if missing := setup_py["missing_for_extension"]():
        pytest.skip(f"nothing can be built here: {missing[0]}")
    return setup_py["extension"]()["ext_modules"]


def test_builds_for_what_nvcc_knows(setup_py, cuda_home):
    assert setup_py["cuda_archs"]("12.8", str(cuda_home)) == ["sm_80", "sm_90a"]


@pytest.mark.parametrize("torch_cuda, says", [("13.0", "torch has CUDA 13.0, nvcc: 12"), (None, "")])
def test_builds_for_the_cpu_where_nvcc_is_not_torchs(setup_py, cuda_home, torch_cuda, says, capsys):
    assert setup_py["cuda_archs"](torch_cuda, str(cuda_home)) == []
    assert says in capsys.readouterr().err


def test_builds_for_the_cpu_without_nvcc_and_says_so(setup_py, tmp_path, capsys):
    assert setup_py["cuda_archs"]("13.0", str(tmp_path)) == []
    assert "building without CUDA kernels; torch has CUDA 13.0, nvcc: missing" in capsys.readouterr().err


def test_a_cuda_build_compiles_every_source(setup_py, cuda_home, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(cuda_home))
    (module,) = modules(setup_py)
    of_cuda = {source for source in module.sources if source.startswith("csrc/cuda/")}
    assert of_cuda == {path.relative_to(CSRC.parent).as_posix() for path in [*SOURCES, *HOST_CODE]}
    assert ("MISPLACE_CUDA_ARCHS", "sm_80,sm_90a") in module.define_macros
    assert "-gencode=arch=compute_90a,code=sm_90a" in module.extra_compile_args["nvcc"]
    objects = [Path(source).with_suffix("") for source in module.sources]
    assert len(set(objects)) == len(objects), "two sources would be compiled to one object"


def test_a_cpu_build_compiles_none_of_them(setup_py, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    (module,) = modules(setup_py)
    assert not [source for source in module.sources if "cuda" in source]
