"""Every kind of bad input to adamw_ema is an error that names the argument."""

import pytest
import torch

from misplace.kernels import adamw_ema
from misplace.kernels.impl import ImplUnavailableError
from misplace.kernels.testing.optimizer_states import SETTINGS


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"exp_avg": []}, ValueError, "exp_avg has 0 entries for 1 parameters"),
        ({"weight_decay": [0.1, 0.1]}, ValueError, "weight_decay has 2 entries for 1 parameters"),
        ({"step": 0}, ValueError, "step counts updates from 1, not 0"),
        (
            {"gradients": [torch.zeros(3)]},
            ValueError,
            r"gradients\[0\] must be its parameter's shape = \[4\]",
        ),
        ({"parameters": [torch.zeros(4).bfloat16()]}, TypeError, r"parameters\[0\] must be torch.float32"),
        ({"exp_avg": [torch.zeros(4).double()]}, TypeError, r"exp_avg\[0\] must be torch.float32"),
        ({"gradients": [torch.zeros(4).int()]}, TypeError, r"gradients\[0\] must be torch.float32 or torch.bfloat16"),
        ({"gradients": []}, ValueError, "gradients has 0 entries for 1 parameters"),
        ({"gradients": [torch.zeros(4, device="meta")]}, ValueError, r"gradients\[0\] is on meta"),
        ({"student_copies": [torch.zeros(4).half()]}, TypeError, r"student_copies\[0\] must be torch.bfloat16"),
        ({"lr": torch.ones(1).half()}, TypeError, "lr must be torch.float32 or"),
        ({"step": torch.ones(2)}, ValueError, "step must have one element"),
        ({"exp_avg_sq": [torch.zeros(8)[::2]]}, ValueError, r"exp_avg_sq\[0\] must be contiguous"),
        ({"teacher": [torch.zeros(4)]}, ValueError, r"a teacher needs a momentum in \[0, 1\], not None"),
        ({"teacher": [torch.zeros(4)], "momentum": 1.5}, ValueError, "momentum in .* not 1.5"),
        ({"teacher_copies": [torch.zeros(4)]}, ValueError, r"teacher_copies\[0\] has no teacher"),
        ({"exp_avg": [torch.zeros(4, device="meta")]}, ValueError, r"exp_avg\[0\] is on meta"),
        ({"grad_scale": torch.ones(1, device="meta")}, ValueError, "grad_scale is on meta"),
        ({"grad_scale": torch.ones(2)}, ValueError, "grad_scale must have one element"),
        ({"found_inf": torch.ones(2)}, ValueError, "found_inf must have one element"),
        ({"found_inf": torch.tensor(True)}, TypeError, "found_inf must be torch.float32"),
    ],
)
def test_bad_input_is_named(change, error, message):
    state = {name: [torch.zeros(4)] for name in ("parameters", "gradients", "exp_avg", "exp_avg_sq")}
    options = SETTINGS | {"weight_decay": [0.1], "step": 1}
    with pytest.raises(error, match=f"adamw_ema: .*{message}"):
        adamw_ema(**(state | options | change))


def test_fp64_is_for_the_reference_and_torch():
    exact = [torch.zeros(4, dtype=torch.float64) for _ in range(4)]
    with pytest.raises(ImplUnavailableError, match="has no impl=native"):
        adamw_ema(*([t] for t in exact), step=1, weight_decay=[0.1], **SETTINGS, impl="native")


def test_no_parameters():
    with pytest.raises(ValueError, match="adamw_ema: no parameters"):
        adamw_ema([], [], [], [], step=1, weight_decay=[], **SETTINGS)
