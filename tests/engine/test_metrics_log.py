"""metrics.jsonl: valid JSON whatever the numbers, and after a kill and a resume as if neither had been."""

import json
import resource
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from misplace.engine.errors import UserError
from misplace.engine.metrics_log import COMMON_KEYS, MetricsLog, read_metrics


def rows(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def log_steps(path, steps, resume_step=None, tensorboard=None, loss=1.0):
    with MetricsLog(path, resume_step=resume_step, tensorboard=tensorboard) as log:
        for step in steps:
            log.write({"step": step, "loss": loss * step})
    return log


def test_a_line_has_the_keys_given(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = dict.fromkeys(COMMON_KEYS, 0.5) | {"step": 7, "contrast": 1.25}
    with MetricsLog(path) as log:
        log.write(row)
        assert rows(path) == [row]  # there before the log is closed
    assert read_metrics(path) == [row]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (torch.tensor(float("inf")), None),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (np.float32(0.25), 0.25),
        (np.float64("nan"), None),
        (np.int64(3), 3),
        (None, None),
        ("text", "text"),
    ],
)
def test_any_number_makes_valid_json(tmp_path, value, written):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, tensorboard=tmp_path / "tensorboard") as log:
        log.write({"step": torch.tensor(1), "loss": value})
    assert rows(path) == [{"step": 1, "loss": written}]


@pytest.mark.parametrize("row", [{}, {"step": 1.5}, {"step": None}, {"step": True}])
def test_a_step_is_needed(tmp_path, row):
    with MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(ValueError, match="int step"):
        log.write(row)


def test_resume_takes_out_what_the_killed_run_wrote_ahead(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [5, 10, 15, 20])
    assert log_steps(path, [15, 20, 25], resume_step=10, loss=2.0).discarded == 2
    assert rows(path) == [{"step": step, "loss": step * (1.0 if step <= 10 else 2.0)} for step in (5, 10, 15, 20, 25)]


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_torn_last_line_is_mended(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [5, 10])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [row["step"] for row in read_metrics(path)] == ([5, 10] if cut == 1 else [5])
    log_steps(path, [15], resume_step=10)
    assert [row["step"] for row in rows(path)] == ([5, 10, 15] if cut == 1 else [5, 15])


def test_lines_of_zeros_after_a_power_cut_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [5, 10])
    path.write_bytes(path.read_bytes() + b"\0" * 4096)
    assert log_steps(path, [15], resume_step=10).discarded == 1
    assert [row["step"] for row in rows(path)] == [5, 10, 15]


def test_a_fresh_log_starts_anew_and_a_resumed_one_may_have_no_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [5], resume_step=3)
    assert [row["step"] for row in rows(path)] == [5]
    log_steps(path, [1])
    assert [row["step"] for row in rows(path)] == [1]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    board = tmp_path / "tensorboard"
    log_steps(tmp_path / "metrics.jsonl", [5, 10, 15, 20], tensorboard=board)
    time.sleep(1.1)  # TensorBoard orders its files by the second in their names
    log_steps(tmp_path / "metrics.jsonl", [15, 20, 25], resume_step=10, tensorboard=board, loss=2.0)
    events = EventAccumulator(str(board)).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(5, 5.0), (10, 10.0), (15, 30.0), (20, 40.0), (25, 50.0)]


def test_a_full_disk_is_one_line(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(UserError) as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            for step in range(100):
                log.write({"step": step})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "metrics.jsonl: cannot be written: File too large" in str(error.value)
    written = len(read_metrics(tmp_path / "metrics.jsonl"))
    log_steps(tmp_path / "metrics.jsonl", [50], resume_step=written - 1)
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [*range(written), 50]


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: No such file"):
        MetricsLog(tmp_path / "absent" / "metrics.jsonl")
