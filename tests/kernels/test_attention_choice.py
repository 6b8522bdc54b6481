"""What impl="auto" of attention means: the measured table, and what comes after it."""

import pytest
import torch

from misplace.kernels import Impl, attention
from misplace.kernels.attention import attention_choice, choice
from misplace.kernels.testing.compare import require_one_graph
from misplace.kernels.testing.inputs import normal

CPU, BF16 = torch.device("cpu"), torch.bfloat16


def row(impl, tokens_up_to=64, rows_at_least=0, **changes):
    values = dict(device="cpu", kind=choice.CPU_KIND, dtype="bfloat16", mode="forward", tokens_up_to=tokens_up_to)
    values |= dict(head_dim=64, rows_at_least=rows_at_least, impl=impl, next_best="", ratio=1.1, threads=2)
    return choice.Choice(**values | changes)


@pytest.fixture
def table(monkeypatch):
    """Puts rows in the place of the committed ones, in the order that read() gives."""

    def use(*rows):
        ordered = sorted(rows, key=lambda each: (each.tokens_up_to, -each.rows_at_least))
        monkeypatch.setattr(choice, "TABLE", tuple(ordered))

    return use


def choose(tokens=50, rows=100, dtype=BF16, head_dim=64, **options):
    return attention_choice(CPU, dtype, tokens, head_dim, rows, **{"with_gradient": False} | options)


def test_the_nearest_row_counts(table):
    table(row("reference", 256), row("torch"), row("sdpa-flash", rows_at_least=50))
    assert choose() is Impl.SDPA_FLASH
    assert choose(rows=49) is Impl.TORCH
    assert choose(tokens=65) is Impl.REFERENCE


def test_what_does_not_fit_is_passed_over(table):
    table(row("torch", kind="another CPU"), row("torch", mode="forward+backward"), row("xformers"), row("sdpa-cudnn"))
    first = choice.candidates(CPU, BF16, 50, 64)[0]
    assert choose() is first
    assert choose(with_gradient=True) is Impl.TORCH
    for changes in ({"tokens": 65}, {"dtype": torch.float32}, {"head_dim": 32}):
        assert choose(**changes, with_gradient=True) is first
    assert choose(dtype=torch.float64) is Impl.TORCH


def test_mixed_lengths_pass_over_what_does_not_take_them(table):
    table(row("sdpa-flash"))
    assert choose() is Impl.SDPA_FLASH
    assert choose(mixed=True) is not Impl.SDPA_FLASH


def test_auto_asks_the_table_and_a_name_overrides_it(table):
    qkv = normal(2, 50, 3 * 2 * 64, seed=1, dtype=BF16)
    results = {impl: attention(qkv, num_heads=2, impl=impl) for impl in ("reference", "torch")}
    assert not torch.equal(*results.values())
    for impl, expected in results.items():
        table(row(impl))
        assert torch.equal(attention(qkv, num_heads=2), expected)
    table(row("torch", mode="forward+backward"))
    assert torch.equal(attention(qkv.requires_grad_(), num_heads=2), results["torch"])


def test_auto_compiles_in_one_graph():
    require_one_graph(lambda qkv: attention(qkv, num_heads=2), {"qkv": normal(2, 9, 3 * 2 * 32, seed=1)}, ["qkv"])


def test_the_committed_table_names_what_there_is():
    assert choice.read(choice.PATH) == choice.TABLE
    for each in choice.TABLE:
        assert Impl(each.impl) in choice.SUPPORTED[each.device]
        assert each.mode in ("forward", "forward+backward") and each.ratio > 0
    # no two rows for one question
    keys = [each[:7] for each in choice.TABLE]
    assert len(set(keys)) == len(keys)
