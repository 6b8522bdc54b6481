"""Training time, durations, and the length of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misplace.engine.clock import Horizon, TrainingClock, format_duration, parse_duration
from misplace.engine.errors import UserError


class Watch:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


def test_the_clock_counts_training_only():
    watch = Watch()
    clock = TrainingClock(now=watch)
    watch.time += 5
    assert clock.elapsed == 0
    clock.start()
    watch.time += 3
    assert clock.elapsed == 3
    clock.pause()
    watch.time += 100
    clock.resume()
    clock.resume()
    watch.time += 4
    assert clock.elapsed == 7
    with clock.paused():
        watch.time += 50
    watch.time += 1
    assert clock.elapsed == 8


def test_the_clock_goes_on_from_a_checkpoint():
    watch = Watch()
    clock = TrainingClock(120.5, now=watch)
    clock.start()
    watch.time += 2
    assert clock.elapsed == 122.5


def test_a_pause_within_a_pause_does_not_start_the_clock():
    watch = Watch()
    clock = TrainingClock(now=watch)
    with clock.paused():
        watch.time += 1
    watch.time += 1
    assert clock.elapsed == 0


def test_the_real_clock_runs():
    clock = TrainingClock()
    clock.start()
    first = clock.elapsed
    assert clock.elapsed >= first >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("90s", 90),
        ("1h30m", 5400),
        ("300", 300),
        ("1.5h", 5400),
        ("2d", 172800),
        ("1d2h3m4s", 93784),
        (" 1H 30M ", 5400),
        ("0.5", 0.5),
        ("2m30", 150),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "0",
        "0s",
        "-5m",
        "5x",
        "m",
        "5m5m",
        "30m1h",
        "1.2.3s",
        ".",
        "nan",
        "inf",
        "1e3",
        "5 minutes",
        "٣m" * 2,
    ],
)
def test_what_is_no_duration_is_one_line(text):
    with pytest.raises(UserError, match="write it as 300, 90s, 5m or 1h30m") as error:
        parse_duration(text)
    assert "\n" not in str(error.value)


@given(st.text() | st.text("0123456789.dhms -"))
def test_any_text_is_a_time_or_a_user_error(text):
    try:
        assert 0 < parse_duration(text) < float("inf")
    except UserError as error:
        assert "\n" not in str(error)


@given(st.integers(0, 200), st.integers(0, 59), st.integers(0, 59))
def test_hours_minutes_seconds(hours, minutes, seconds):
    total = hours * 3600 + minutes * 60 + seconds
    if total:
        assert parse_duration(f"{hours}h{minutes}m{seconds}s") == total
        assert abs(parse_duration(format_duration(total)) - total) < 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (7.4, "7s"), (59.6, "1m00s"), (185, "3m05s"), (3600, "1h00m"), (90061, "25h01m")],
)
def test_durations_for_people(seconds, text):
    assert format_duration(seconds) == text


def test_a_horizon_of_steps():
    horizon = Horizon(steps=200)
    assert [horizon.progress(step, 1e9) for step in (0, 50, 200, 300)] == [0.0, 0.25, 1.0, 1.0]
    assert [horizon.done(step, 1e9) for step in (199, 200)] == [False, True]
    assert horizon.remaining_seconds(0, 0.0) is None
    assert horizon.remaining_seconds(50, 10.0) == 30.0
    assert horizon.remaining_seconds(200, 10.0) == 0.0


def test_a_horizon_of_time():
    horizon = Horizon(seconds=60.0)
    assert [horizon.progress(10**9, seconds) for seconds in (0.0, 15.0, 60.0, 61.0)] == [0.0, 0.25, 1.0, 1.0]
    assert [horizon.done(0, seconds) for seconds in (59.999, 60.0)] == [False, True]
    assert horizon.remaining_seconds(0, 0.0) == 60.0
    assert horizon.remaining_seconds(5, 61.0) == 0.0


@pytest.mark.parametrize("length", [{"steps": 0}, {"steps": -1}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_no_length_is_a_user_error(length):
    with pytest.raises(UserError, match="must be above zero"):
        Horizon(**length)


@pytest.mark.parametrize("length", [{}, {"steps": 1, "seconds": 1.0}])
def test_a_horizon_is_one_thing(length):
    with pytest.raises(ValueError, match="one of them"):
        Horizon(**length)
