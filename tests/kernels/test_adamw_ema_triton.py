"""The Triton kernels without a GPU: interpreted against fp64, and compiled for three GPUs. With one: CUDA graphs."""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from misplace.kernels.adamw_ema import AdamWTensors, update
from misplace.kernels.impl import Impl, why_unavailable
from misplace.kernels.testing.optimizer_states import SETTINGS, WEIGHT_DECAY, gradients, make, on_device, same_bits

INTERPRETED = Path(__file__).with_name("interpreted_adamw_ema.py")
FLOATS = ("grad_scale", "decay_rate", "inverse_root", "step_size", "pace", "rate1", "beta2", "rate2", "eps")
SCALARS = ("step", "lr", "decay_scale", "grad_scale", "momentum", "found_inf")
CAPABILITIES = (80, 90, 100)


def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words == ["close"] * 4 + ["equal", "moved", "unwritten", "frozen", "opcheck"]


@pytest.mark.parametrize("scalars_on_device", [False, True])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiled_ahead_of_time_does_not_spill(capability, scalars_on_device):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.adamw_ema.table import FIELDS, NUM_WARPS, PIECE
    from misplace.kernels.adamw_ema.triton import adamw_ema_kernel
    from misplace.kernels.testing.ahead_of_time import resources

    signature = {"table_ptr": "*i64", "coefficients_ptr": "*fp32" if scalars_on_device else "*i64"}
    signature |= {"num_tensors": "i32"} | dict.fromkeys(FLOATS, "fp32")
    signature |= dict.fromkeys(("FIELDS", "PIECE", "ON_DEVICE"), "constexpr")
    constants = {"FIELDS": FIELDS, "PIECE": PIECE, "ON_DEVICE": scalars_on_device}
    used = resources(adamw_ema_kernel, signature, constants, capability=capability, num_warps=NUM_WARPS)
    print(f"adamw_ema sm_{capability} scalars on device={scalars_on_device}: {used}")
    assert used.stack == 0, used


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_coefficients_compiled_ahead_of_time_do_not_spill(capability):
    pytest.importorskip("triton", reason="triton is not installed")
    from misplace.kernels.adamw_ema.coefficients import coefficients_kernel
    from misplace.kernels.testing.ahead_of_time import resources

    flags = tuple(name.upper() for name in SCALARS)
    signature = {"to_ptr": "*fp32"} | dict.fromkeys(SCALARS, "*fp32")
    signature |= dict.fromkeys(("LOG_BETA1", "LOG_BETA2", *flags), "constexpr")
    constants = {"LOG_BETA1": math.log(0.9), "LOG_BETA2": math.log(0.999)} | dict.fromkeys(flags, True)
    used = resources(coefficients_kernel, signature, constants, capability=capability, num_warps=1)
    assert used.stack == 0, used


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.TRITON, Impl.NATIVE])
def test_a_captured_graph_follows_its_scalars(impl):
    """Two replays with new step, lr and momentum equal two calls, to the bit."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if reason := why_unavailable(impl, torch.device("cuda")):
        pytest.skip(reason)
    state, expected = make(device="cuda"), make(device="cuda")
    tensors = AdamWTensors(**state, weight_decay=WEIGHT_DECAY)
    given = gradients(1, device="cuda")
    scalars = {"step": 1.0, "lr": SETTINGS["lr"], "momentum": 0.5}
    held = {name: torch.tensor(value, dtype=torch.float64, device="cuda") for name, value in scalars.items()}
    options = {"betas": SETTINGS["betas"], "eps": SETTINGS["eps"], "impl": impl}
    update(tensors, given, **held, **options)  # compiles, and writes its table, before the capture
    for name, start in make(device="cuda").items():
        for tensor, value in zip(state[name], start, strict=True):
            if tensor is not None:
                tensor.copy_(value)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update(tensors, given, **held, **options)
    run = on_device(partial(update, impl=impl))
    plain = AdamWTensors(**expected, weight_decay=WEIGHT_DECAY)
    for step, lr, momentum in ((1, 2**-9, 0.5), (2, 2**-10, 0.75)):
        for name, value in (("step", step), ("lr", lr), ("momentum", momentum)):
            held[name].fill_(value)
        graph.replay()
        run(plain, given, step=step, momentum=momentum, **SETTINGS | {"lr": lr})
    assert same_bits(state, expected)
