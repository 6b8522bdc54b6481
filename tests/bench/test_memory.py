"""The peak of a call is what its tensors take at once, to the byte, however often it ran before."""

import re

import pytest
import torch

from misplace.bench import step_memory
from misplace.bench.memory import peak_bytes

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
    assert step_memory.main(["--tiny"]) == 0
    line = capsys.readouterr().out
    peaks = {side: float(mb) for side, mb in re.findall(r"(auto|torch|reference) ([\d.]+) MB", line)}
    assert 0 < peaks["auto"] <= peaks["torch"] < peaks["reference"]
