"""The tool that writes the table of attention's choices."""

import torch

from misplace.bench import attention_choices
from misplace.bench.attention_choices import AGAIN, fastest
from misplace.kernels.attention import choice


def samples(**ms):
    return {name: [value] * 5 for name, value in ms.items()}


def test_the_default_stays_unless_another_beats_it_by_more_than_noise():
    assert fastest(samples(native=2.0, torch=1.0) | {AGAIN: [2.0] * 5}) == ("torch", "native", 2.0)
    assert fastest(samples(native=2.0, torch=1.5) | {AGAIN: [3.0] * 5}) == ("native", "torch", 0.75)
    assert fastest(samples(native=2.0, torch=3.0, other=4.0) | {AGAIN: [2.0] * 5}) == ("native", "torch", 1.5)


def test_a_rehearsal_writes_rows_that_are_read_and_keeps_those_of_others(tmp_path):
    path = tmp_path / "choices.csv"
    other = choice.Choice("cuda", "0.0", "bfloat16", "forward", 50, 64, 0, "triton", "sdpa-flash", 1.5, 0)
    attention_choices.write(path, other._replace(impl="torch"))
    attention_choices.write(path, other)
    assert choice.read(path) == (other,)
    assert attention_choices.main(["--tiny", "--rounds", "2", "--out", str(path)]) == 0
    rows = choice.read(path)
    assert other in rows
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = {
        (dtype, mode, tokens, 0)
        for dtype in attention_choices.DTYPES[device]
        for mode in ("forward", "forward+backward")
        for tokens in attention_choices.TINY["tokens"]
    }
    here = [row for row in rows if row.device == device and row is not other]
    assert {(row.dtype, row.mode, row.tokens_up_to, row.rows_at_least) for row in here} >= expected
