"""SIGTERM and SIGINT ask a rank to stop after a step; nothing else happens in a signal handler.

A scheduler that wants its machine back, and Ctrl-C, come at any moment: inside a collective, while a file is written.
So the handler notes the number and returns. The step's guard tells all ranks (recognition/guard.py), which save and
leave after the same step. The second signal, and the tenth, change nothing.
Proven by tests/recognition/test_stopping.py and test_faults.py.
"""

import signal
from types import FrameType, TracebackType


class StopRequest:
    """Notes SIGTERM and SIGINT within this context, and after it once one came. signal: the first one, 0 for none."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.signal:  # the process is on its way out, and the next signal does not hurry it
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
