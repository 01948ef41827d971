"""RUN/status.json: what became of a run, for people and for whoever watches many of them.

    {"state": "running" | "stopped" | "trained" | "finished" | "failed",
     "step", "steps", "epoch"     where training is; absent where the writer does not know
     "signal", "exit_status", "reason"     of a stop or a failure
     "time"}     of this note, ISO 8601 with zone

Rank 0 writes while it trains, the launcher what came of it. The file is replaced in one piece.
Proven by tests/recognition/test_launch.py and test_faults.py.
"""

import contextlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

FILE = "status.json"


def write_status(folder: Path, state: str, **facts: Any) -> None:
    """Replace the note; without a step it keeps the last one's. A disk that does not take it ends no run."""
    with contextlib.suppress(OSError):
        before = {key: value for key, value in read_status(folder).items() if key in ("step", "steps", "epoch")}
        note = {"state": state, **before, **facts, "time": datetime.now().astimezone().isoformat(timespec="seconds")}
        whole = folder / f".{FILE}.new"
        whole.write_text(json.dumps(note, indent=1) + "\n")
        whole.replace(folder / FILE)


def read_status(folder: Path) -> dict[str, Any]:
    """The note of a run; empty when there is none that can be read."""
    return read_json(folder / FILE)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file; empty when there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
