"""A signal is noted, once, and the handlers come back."""

import os
import signal

from recognition.stopping import StopRequest


def test_signals_are_noted_and_nothing_else():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with StopRequest() as stop:
            assert stop.signal == 0
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
            assert stop.signal == signal.SIGTERM  # the first one counts
        os.kill(os.getpid(), signal.SIGTERM)  # while the process leaves
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_without_a_signal_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
