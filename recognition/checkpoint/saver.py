"""The saves of a run: in training's way, or beside it from a copy in host memory.

    save()                            training                 the save's thread
    wait for the save before
    copy tensors to the host    →     goes on            →     recognition/checkpoint/writing.py

What the ranks tell each other while they write goes through a process group of its own. All learn of a failure on any
of them in the background and raise it at the next `save` or `finish`, which they all call at the same step: never at
a moment that depends on a thread. Proven by tests/recognition/checkpoint/test_saver.py.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from recognition.checkpoint.keep import Keep
from recognition.checkpoint.layout import json_bytes, step_folder
from recognition.checkpoint.snapshot import HostCopies, content
from recognition.checkpoint.writing import Published, Writing, audit
from recognition.distributed import Ranks, side_channel

LEAVING_SECONDS = 10.0
"""How long a save under way may still take when training has failed."""

log = logging.getLogger(__name__)


class Saver:
    """Saves of one run in a folder. All ranks make one, and call its methods at the same steps.

    labels: the name of each class, "" for one without (only rank 0's are looked at).
    asynchronous: `save` returns when the tensors are copied; the copy takes as much host memory as this rank's files
    take on disk, and is kept for the next save.
    As a context: leaving it waits for the save under way, after an error for LEAVING_SECONDS at most. A process that
    then ends should do so by `os._exit`: a thread in a collective aborts an interpreter that is shutting down.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, keep: Keep, asynchronous: bool = True, labels: Sequence[str] | None = None
    ) -> None:
        self.folder, self.keep = folder, keep
        self.newest: Path | None = None  # the newest complete save of this process
        self._ranks = side_channel(ranks) if asynchronous else ranks
        self._labels: bytes | None = None
        if labels is not None and ranks.is_first:
            if strange := [name for name in labels if "\n" in name]:
                raise ValueError(f"{strange[0]!r}: a name with a line end")
            self._labels = "".join(f"{name}\n" for name in labels).encode("utf-8", "surrogateescape")
        self._copies = HostCopies() if asynchronous else None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way on this rank."""
        return self._thread is not None and self._thread.is_alive()

    def save(
        self,
        step: int,
        replicated: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        start: int,
        state: Mapping[str, Any],
        *,
        score: float | None = None,
        after: Callable[[Published], None] | None = None,
    ) -> None:
        """Save on all ranks together; waits for the save before this one and raises what that one ran into.

        replicated: written by rank 0.  rows: this rank's rows of each tensor, the first being class `start`.
        state: plain finite values (ValueError); `step` and `score`, the higher the better, are added.
        after: called on rank 0 once the save is complete, by the save's thread: so no collectives, and nothing that
        draws from torch's global random generator, which is training's.
        CheckpointError on all ranks when any of them cannot write; the saves before stay as they are.
        """
        self.finish()
        audit("snapshot", step)
        state = {**state, "step": step, "score": score}
        json_bytes(state)  # what cannot be written fails here, not on a thread
        what = content(step, state, replicated if self._ranks.is_first else {}, rows, start)
        if self._copies is None:
            self._write(Writing(self.folder, what, self._ranks, self.keep, self._labels, after))
            self.finish()
            return
        writing = Writing(self.folder, self._copies.of(what), self._ranks, self.keep, self._labels, after)
        self._thread = threading.Thread(target=self._write, args=(writing,), name=f"save of step {step}", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the save under way and raise what it ran into."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.finish()
        elif self._thread is not None:
            self._thread.join(LEAVING_SECONDS)
            if self._thread.is_alive():
                log.warning("%s: left unfinished; the next save removes it", self._thread.name)

    def _write(self, writing: Writing) -> None:
        try:
            self.newest = writing.run()
        except BaseException as failure:
            self._failure = failure


def save(
    folder: Path, step: int, replicated: Mapping[str, Tensor], rows: Mapping[str, Tensor], start: int,
    state: Mapping[str, Any], ranks: Ranks,
) -> Path:
    """One save on all ranks together that removes no other; returns when it is complete on disk."""
    Saver(folder, ranks, Keep(last=0), asynchronous=False).save(step, replicated, rows, start, state)
    return step_folder(folder, step)
