"""Why a run ended, from the notes that its ranks leave and their exit statuses: one line, one status, once.

Notes in a folder of the machine: failure-RANK, JSON of `note_failure`; progress-RANK (recognition/progress.py).
A known cause (2 to 5), or a stop that was asked for, goes first; then a rank that ended without a word, which goes
before those that merely lost it; then the first fault of the program; where all only waited, who did not come.
Proven by tests/recognition/test_cause.py.
"""

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recognition.errors import DistributedError, TrainerError, debugging
from recognition.progress import read_progress, who_is_missing

SIGNS_OF_A_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited",
                        "Timed out", "timed out", "Connection refused", "failed to connect", "recvValue failed")


def note_path(kind: str) -> Path | None:
    """Where this rank leaves a note of a kind; None without a launcher that reads it."""
    folder = os.environ.get("RUN_NOTES")
    return Path(folder, f"{kind}-{os.environ.get('RANK', '0')}") if folder else None


def note_failure(error: Exception) -> tuple[int, str]:
    """Leave a failure's note for the launcher, at once. Returns its status and the text for people."""
    expected = isinstance(error, TrainerError)
    trace = "" if expected and not debugging() else "".join(traceback.format_exception(error))
    lost_peer = not expected and any(sign in str(error) for sign in SIGNS_OF_A_LOST_PEER)
    if not isinstance(error, TrainerError):
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        error = DistributedError(f"rank {os.environ.get('RANK', '0')}: {type(error).__name__}: {first_line}")
    _write({"status": error.status, "message": str(error), "traceback": trace, "lost_peer": lost_peer})
    return error.status, f"{trace}error: {error}"


def note_stop(number: int) -> int:
    """Leave the note that this rank stopped as it was asked to. Returns the status."""
    status = 128 + number
    _write({"status": status, "message": f"stopped by {signal.Signals(number).name}", "traceback": "",
            "lost_peer": False})
    return status


def _write(note: dict[str, Any]) -> None:
    if path := note_path("failure"):
        with contextlib.suppress(OSError):  # a full disk does not keep a rank from ending
            whole = path.with_name(f"writing-{path.name}")
            whole.write_text(json.dumps(note | {"time": time.time()}))
            whole.replace(path)


def failures(notes: Path) -> dict[int, dict[str, Any]]:
    """The failures noted on this machine, by rank."""
    return {int(path.name.partition("-")[2]): json.loads(path.read_text()) for path in notes.glob("failure-*")}


def is_final(notes: Path) -> bool:
    """Whether any rank noted what starting again would not mend; a stop is no such thing."""
    return any(note["status"] < DistributedError.status for note in failures(notes).values())


def was_stopped(notes: Path) -> bool:
    """Whether every rank that left a note noted that it stopped as asked, with its state saved."""
    noted = failures(notes).values()
    return bool(noted) and all(note["status"] > 128 for note in noted)


def cause(notes: Path, exit_codes: Mapping[int, int]) -> tuple[int, str]:
    """Exit status and text of what ended the ranks of this machine.

    exit_codes: of the ranks that failed; minus a signal's number where it ended one.
    """
    noted = failures(notes)
    ended = {rank: code for rank, code in exit_codes.items()
             if rank not in noted and code not in (0, 130, -signal.SIGTERM, -signal.SIGINT)}
    if noted:
        first = min(noted.values(), key=lambda note: (note["status"] == DistributedError.status, note["lost_peer"],
                                                      note["time"]))
        if first["status"] != DistributedError.status or not (first["lost_peer"] and (ended or _missing(notes))):
            asked = "" if first["status"] > 128 else "error: "
            return int(first["status"]), f"{first['traceback']}{asked}{first['message']}"
    if ended:
        return DistributedError.status, f"error: {_silent(ended)}"
    if missing := _missing(notes):
        return DistributedError.status, f"error: {missing}"
    for number in (signal.SIGINT, signal.SIGTERM):
        if {128 + number, -number} & {*exit_codes.values()}:
            return 128 + number, f"stopped by {number.name}"
    return DistributedError.status, "error: the ranks ended and left no reason"


def _silent(ended: Mapping[int, int]) -> str:
    rank, code = min(ended.items(), key=lambda item: (item[1] == -signal.SIGABRT, item[0]))
    how = {-signal.SIGKILL: " (killed; out of memory?)", -signal.SIGABRT: " (aborted; a collective's timeout?)"}
    return f"rank {rank} ended with status {code} and left no reason{how.get(code, '')}"


def _missing(notes: Path) -> str:
    places = {int(path.name.partition("-")[2]): read_progress(path) for path in notes.glob("progress-*")}
    return who_is_missing(places, time.time())
