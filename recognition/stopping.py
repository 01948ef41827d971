"""SIGTERM and SIGINT ask a rank to stop after a step; nothing else happens in a signal handler.

A scheduler that wants its machine back, and Ctrl-C, come at any moment: inside a collective, while a file is written.
So the handler notes the number and returns. The step's guard tells all ranks (recognition/guard.py), which save and
leave after the same step. The second signal, and the tenth, change nothing.
A launcher that is killed takes its ranks along, and a run's folder belongs to one run at a time.
Proven by tests/recognition/test_stopping.py, test_faults.py and test_restarts.py.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from recognition.distributed import Ranks, fail_together
from recognition.errors import SettingsError

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


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


def end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the launcher dies: ranks have sessions of their own and would train on unseen."""
    launcher = os.environ.get("RUN_LAUNCHER")
    if sys.platform == "linux" and launcher:
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != int(launcher):  # it had died before
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def sole_run(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the run's folder (rank 0, RUN/.lock) against a second run; SettingsError on all ranks when there is one."""
    failure, lock = None, None
    if ranks.is_first:
        lock = (folder / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            failure = _in_use(folder)
        except OSError:
            pass  # a file system without locks
    fail_together(failure, ranks)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def require_unused(folder: Path) -> None:
    """SettingsError where a run holds this folder at this moment. Leaves no file."""
    with contextlib.suppress(OSError), (folder / ".lock").open() as lock:  # no such file, or no locks on this disk
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(folder) from None


def _in_use(folder: Path) -> SettingsError:
    return SettingsError(f"{folder}: another run is using this folder")
