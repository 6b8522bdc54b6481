"""What a Triton kernel costs on a GPU that is not here: compiled for it, then read from the machine code."""

import re
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)


class Resources(NamedTuple):
    """Per thread: registers, bytes of stack (spilled registers, local arrays). Per program: shared bytes."""

    registers: int
    stack: int
    shared: int


def resources(
    kernel,
    signature: dict[str, str],
    constants: dict[str, Any],
    *,
    capability: int,
    num_warps: int,
    num_stages: int = 3,
    divisible: Collection[str] = (),
) -> Resources:
    """Compiles `kernel` for sm_<capability>. signature: types of all arguments, "constexpr" for constants.

    divisible: arguments that 16 divides, as a launch finds for itself.
    """
    hints = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if name in divisible}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=hints)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": num_warps, "num_stages": num_stages})
    usage = _resource_usage(compiled.asm["cubin"])
    return Resources(usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared)


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout)}
