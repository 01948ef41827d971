"""A signal is noted, once, and the handlers come back."""

import os
import signal

from recognition.stopping import StopRequest


def test_signals_are_noted_and_nothing_else():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.signal == 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.signal == signal.SIGTERM  # the first one counts
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
