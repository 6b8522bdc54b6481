"""The floor is the slower of moving the bytes and doing the matrix work."""

import pytest
import torch

from misplace.bench import roofline

CPU = torch.device("cpu")


def test_floor_without_matrix_work_is_the_traffic(monkeypatch):
    monkeypatch.setattr(roofline, "traffic_rate", lambda *_: 2e9)
    assert roofline.floor_ms(10**9, 0, torch.float32, CPU) == pytest.approx(500)


@pytest.mark.parametrize(("operations", "ms"), [(10**12, 1000), (10**11, 500)])
def test_floor_is_the_slower_of_the_two(monkeypatch, operations, ms):
    monkeypatch.setattr(roofline, "traffic_rate", lambda *_: 2e9)
    monkeypatch.setattr(roofline, "matmul_rate", lambda *_: 1e12)
    assert roofline.floor_ms(10**9, operations, torch.float32, CPU) == pytest.approx(ms)


def test_rates_count_what_was_done(monkeypatch):
    """With a fixed second per call, the rates are the bytes and the operations themselves."""
    monkeypatch.setattr(roofline, "_best_seconds", lambda *_: 1.0)
    monkeypatch.setitem(roofline.TRAFFIC_BYTES, "cpu", 4096)
    monkeypatch.setitem(roofline.MATMUL_SIZE, "cpu", 16)
    assert roofline.traffic_rate.__wrapped__(CPU, 1) == 2 * 4096
    assert roofline.matmul_rate.__wrapped__(CPU, torch.float32, 1) == 2 * 16**3


def test_traffic_is_the_faster_of_a_copy_and_an_update_in_place(monkeypatch):
    readings = iter([2.0, 1.0])
    monkeypatch.setattr(roofline, "_best_seconds", lambda *_: next(readings))
    monkeypatch.setitem(roofline.TRAFFIC_BYTES, "cpu", 4096)
    assert roofline.traffic_rate.__wrapped__(CPU, 1) == 2 * 4096


def test_best_of_several_is_taken(monkeypatch):
    readings = iter([5.0, 2.0, 3.0, *[4.0] * roofline.REPEATS])
    monkeypatch.setattr(roofline, "_seconds", lambda *_: next(readings))
    assert roofline._best_seconds(lambda: None, CPU) == 2.0
