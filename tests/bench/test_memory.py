"""The peak of a call is what its tensors take at once, to the byte, however often it ran before."""

import re

import pytest
import torch

from misplace.bench import peak_memory
from misplace.bench.memory import peak_bytes
from misplace.engine.errors import UserError

CPU = torch.device("cpu")
MB = 1 << 20


def full(size):
    return torch.ones(size, dtype=torch.uint8)


@pytest.mark.parametrize("sizes", [(64 * MB,), (32 * MB, 64 * MB, 16 * MB), (3000, 5000)])
def test_largest_of_what_is_held_one_after_the_other(sizes):
    def call():
        for size in sizes:
            full(size)

    assert [peak_bytes(call, CPU) for _ in range(2)] == [max(sizes)] * 2


def test_what_is_held_together_counts_together():
    assert peak_bytes(lambda: [full(1000) for _ in range(50)], CPU) == 50_000


def test_what_was_held_before_does_not_count():
    held = [full(MB)]
    assert peak_bytes(lambda: full(1000), CPU) == 1000
    assert held[0].numel() == MB


def test_nothing():
    assert peak_bytes(lambda: None, CPU) == 0


def test_a_fused_step_takes_no_more_than_torchs_operators_and_less_than_the_reference(capsys):
    assert peak_memory.main(["step", "--tiny", "--against", "eager,reference"]) == 0
    peaks = printed(capsys)
    assert 0 < peaks["auto"] <= peaks["eager"] < peaks["reference"]


def test_the_trunk_and_timms_side_by_side(capsys):
    """What they differ in shows at full size: so few images take less than the gradients."""
    assert peak_memory.main(["trunk", "--tiny", "--against", "eager-sdpa"]) == 0
    peaks = printed(capsys)
    assert peaks.keys() == {"auto", "eager-sdpa"} and min(peaks.values()) > 0


def test_a_case_that_there_is_not_is_a_user_error():
    with pytest.raises(UserError, match="no case of trunk in that mode and shape"):
        peak_memory.main(["trunk", "--tiny", "--shape", "nonsense"])


def printed(capsys):
    """Side -> MB of the one line."""
    return {side: float(mb) for side, mb in re.findall(r"([a-z-]+) ([\d.]+) MB", capsys.readouterr().out)}
