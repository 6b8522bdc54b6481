"""SIGTERM and SIGINT set a flag, once; workers and later code keep the usual behaviour."""

import os
import signal
import threading

import pytest

from misplace.engine.signals import StopSignals


@pytest.fixture
def handlers():
    """The handlers before, which must be there again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        assert signal.getsignal(number) is handler
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_sets_the_flag(handlers, number):
    with StopSignals() as stop:
        assert not stop.stop_requested
        signal.raise_signal(number)
        assert stop.stop_requested and stop.received is number


def test_a_second_interrupt_interrupts(handlers):
    with pytest.raises(KeyboardInterrupt), StopSignals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_after_a_termination_interrupts_a_second_termination_does_not(handlers):
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received is signal.SIGTERM
        signal.raise_signal(signal.SIGINT)


def test_the_old_handler_is_back_and_works(handlers):
    heard = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, old)
    assert heard == [signal.SIGTERM]


def test_in_a_thread_nothing_changes(handlers):
    seen = []

    def body():
        with StopSignals() as stop:
            seen.append((stop.stop_requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(False, handlers[signal.SIGTERM])]


def test_a_forked_worker_dies_of_sigterm_and_outlives_ctrl_c(handlers):
    with StopSignals() as stop:
        worker = os.fork()
        if worker == 0:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        status = os.waitpid(worker, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
        assert not stop.stop_requested
