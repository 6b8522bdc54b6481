"""What a run shows while it trains."""

import io

import pytest
from rich.console import Console

from misplace.engine.clock import Horizon
from misplace.engine.progress import ProgressDisplay, describe, print_implementations

ROW = {
    "step": 50,
    "epoch": 1,
    "images": 3200,
    "seconds": 10.0,
    "loss": 3.25,
    "contrast": 2.75,
    "dilemma": 0.5,
    "bce": 0.4981,
    "auroc": 0.7125,
    "lr": 1e-4,
    "grad_norm": 1.5,
    "images_per_s": 319.6,
    "data_wait": 0.034,
}


class Watch:
    time = 0.0

    def __call__(self):
        return self.time


def plain_console(width=200):
    return Console(file=io.StringIO(), highlight=False, width=width, force_terminal=False)


def test_a_line_says_all_of_it():
    assert describe(ROW | {"knn": 0.7231}, Horizon(steps=200)) == [
        "step 50/200  25%",
        "320 images/s",
        "data wait 3%",
        "loss 3.25 contrast 2.75 dilemma 0.5 bce 0.4981 auroc 0.7125",
        "k-NN 72.3%",
        "ETA 30s",
    ]


def test_a_budget_shows_its_share():
    assert describe({"step": 7, "seconds": 45.0}, Horizon(seconds=300.0)) == ["step 7  15%", "ETA 4m15s"]


def test_what_is_missing_or_not_a_number_does_no_harm():
    row = {"step": 0, "seconds": 0.0, "loss": None, "auroc": None, "contrast": float("nan")}
    assert describe(row, Horizon(steps=10)) == ["step 0/10   0%", "loss - contrast nan auroc -"]


def test_without_a_terminal_a_line_every_ten_seconds_and_the_last():
    watch, console = Watch(), plain_console()
    with ProgressDisplay(Horizon(steps=100), console=console, now=watch) as display:
        for step in range(1, 26):
            display.update(ROW | {"step": step})
            watch.time += 1.0
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "11/100", "21/100", "25/100"]
    assert all("\x1b" not in line and "images/s" in line for line in lines)


def test_a_measured_knn_stays():
    console = plain_console()
    with ProgressDisplay(Horizon(steps=100), console=console, now=Watch(), interval=0.0) as display:
        display.update(ROW | {"knn": 0.5})
        display.update(ROW)
        display.message("[1/2] collapse: not markup")
    lines = console.file.getvalue().splitlines()
    assert "k-NN 50.0%" in lines[1] and lines[2] == "[1/2] collapse: not markup"


def test_a_long_line_is_not_wrapped():
    console = plain_console(width=40)
    with ProgressDisplay(Horizon(steps=100), console=console) as display:
        display.update(ROW)
    assert console.file.getvalue().count("\n") == 1


def test_nothing_to_show_shows_nothing():
    console = plain_console()
    with ProgressDisplay(Horizon(steps=1), console=console):
        pass
    assert console.file.getvalue() == ""


def test_on_a_terminal_a_bar_and_messages_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False)
    watch = Watch()
    with ProgressDisplay(Horizon(steps=100), console=console, now=watch) as display:
        display.update(ROW)
        display.message("a message")
        watch.time += 0.1
        display.update(ROW | {"step": 51})  # too soon to redraw: shown at the end
    text = console.file.getvalue()
    assert "step 50/100" in text and "━" in text and "a message" in text and "step 51/100" in text


def test_an_error_leaves_the_terminal_usable(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with pytest.raises(RuntimeError), ProgressDisplay(Horizon(steps=100), console=console) as display:
        display.update(ROW)
        raise RuntimeError
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_the_table_of_implementations():
    console = plain_console()
    print_implementations({"attention": "torch", "gelu": "reference"}, console)
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert lines == [["op", "implementation"], ["attention", "torch"], ["gelu", "reference"]]
