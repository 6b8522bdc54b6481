"""The stopwatch: what is interleaved, what a ratio is worth."""

import pytest
import torch

from misplace.bench import timing

CPU = torch.device("cpu")


def test_every_round_calls_all_and_starts_with_another(clock):
    called = []

    def side(name):
        def call():
            called.append(name)
            clock.now += 1.0

        return call

    timing.interleave({name: side(name) for name in "abc"}, CPU, rounds=3)
    timed = called[3 * timing.WARM_UP :]
    assert "".join(timed) == "aabbcc" + "bca" + "cab"  # each is read once more at first, to set its repeats


def test_samples_are_ms_per_call_however_often_repeated(clock):
    samples = timing.interleave({"short": clock.takes(1e-5), "long": clock.takes(0.1)}, CPU, rounds=4)
    assert samples["short"] == pytest.approx([0.01] * 4)
    assert samples["long"] == pytest.approx([100.0] * 4)


def test_warm_up_is_not_measured(clock):
    called = []

    def call():
        clock.now += 50.0 if len(called) < timing.WARM_UP else 1.0
        called.append(1)

    assert timing.interleave({"a": call}, CPU, rounds=3)["a"] == pytest.approx([1000.0] * 3)


def test_spread_of_known_samples():
    assert timing.spread([float(x) for x in range(11)]) == (2.0, 5.0, 8.0)
    assert timing.spread([3.0]) == (3.0, 3.0, 3.0)


def samples(monkeypatch, ours, against, again):
    """compare() on given samples instead of a clock."""
    monkeypatch.setattr(timing, "interleave", lambda *_, **__: {"ours": ours, "against": against, "again": again})
    return timing.compare(None, None, CPU)


def test_ratio_is_the_median_of_the_rounds(monkeypatch):
    compared = samples(monkeypatch, [1.0, 2.0, 1.0], [3.0, 6.0, 100.0], [1.0, 2.0, 1.0])
    assert compared.ratio == 3.0
    assert compared.itself == (1.0, 1.0, 1.0)
    assert compared.counts


@pytest.mark.parametrize(("against", "counts"), [(1.15, False), (0.9, False), (1.5, True), (0.5, True)])
def test_ratio_counts_only_beyond_the_spread_of_ours_against_itself(monkeypatch, against, counts):
    ours, again = [1.0] * 10, [0.8, 1.25] * 5
    assert samples(monkeypatch, ours, [against] * 10, again).counts is counts


def test_slower_peer_is_told_from_ours(clock):
    compared = timing.compare(clock.takes(2e-3), clock.takes(8e-3), CPU, rounds=5)
    assert compared.ratio == pytest.approx(4)
    assert compared.ours.p50 == pytest.approx(2)
    assert compared.against.p50 == pytest.approx(8)
    assert compared.counts


def test_threads_are_pinned_and_given_back():
    before = torch.get_num_threads()
    with timing.pinned_threads(1) as threads:
        assert threads == torch.get_num_threads() == 1
    with timing.pinned_threads(None) as threads:
        assert threads == before
    assert torch.get_num_threads() == before


@pytest.mark.gpu
def test_cuda_events_see_the_work():
    device = torch.device("cuda")
    small, large = (torch.randn(n, n, device=device) for n in (256, 4096))
    compared = timing.compare(lambda: small @ small, lambda: large @ large, device, rounds=20)
    assert compared.ratio > 5
