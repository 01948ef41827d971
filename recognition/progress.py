"""Where a rank is, in a file of a few bytes that outlives it: who hung, and what the others waited for.

    step  exchanges  seconds since the epoch  what it does

A rank writes its own file through a memory map, some microseconds a note and no system call, so that it costs nothing
to keep it true; the launcher reads the files of its ranks when the run has failed, whatever became of the processes.
`exchanges` counts the collectives begun: ranks in step have equal counts, and the one that did not come has fewer.
Imports nothing of the project. Proven by tests/recognition/test_progress.py.
"""

import mmap
import struct
import time
from pathlib import Path
from typing import NamedTuple

_FORM = struct.Struct("<QQd96s")


class Place(NamedTuple):
    """Where a rank was last. seconds: of the clock, when it said so."""

    step: int
    exchanges: int
    seconds: float
    doing: str


class Progress:
    """A rank's own notes; without a path they are kept in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self.step, self.exchanges, self.doing = 0, 0, "starting"
        self._memory: mmap.mmap | bytearray = bytearray(_FORM.size)
        if path is not None:
            path.write_bytes(bytes(_FORM.size))
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _FORM.size)
        self._write(self.doing)

    def at(self, doing: str, step: int | None = None) -> None:
        """Begin something that this rank does by itself."""
        self.step = self.step if step is None else step
        self.doing = doing
        self._write(doing)

    def exchange(self, name: str, num_bytes: int = 0) -> None:
        """Begin a collective, which ends when every rank came.

        num_bytes: of its whole tensor, the gathered one, or the one that is reduced; noted by those who count
        (benchmarks/scaling.py), not here.
        """
        self.exchanges += 1
        self._write(f"{name} ({self.doing})")

    def _write(self, text: str) -> None:
        _FORM.pack_into(self._memory, 0, self.step, self.exchanges, time.time(), text.encode()[:96])


def read_progress(path: Path) -> Place:
    """Where a rank was when it last wrote."""
    step, exchanges, seconds, text = _FORM.unpack(path.read_bytes())
    return Place(step, exchanges, seconds, text.rstrip(b"\0").decode(errors="replace"))


def who_is_missing(places: dict[int, Place], now: float) -> str:
    """One line on ranks that others waited for, by their counts of exchanges; empty when all stand at the same one.

    places: rank → place.  now: seconds of the clock.
    """
    furthest = max((place.exchanges for place in places.values()), default=0)
    behind = {rank: place for rank, place in places.items() if place.exchanges < furthest}
    if not behind:
        return ""
    waiting = next(place for place in places.values() if place.exchanges == furthest)
    missing = "; ".join(
        f"rank {rank} did not come: at step {place.step} it is in {place.doing} since {now - place.seconds:.0f} s"
        for rank, place in sorted(behind.items())
    )
    return f"{missing}; the others wait for it at step {waiting.step} in {waiting.doing}"
