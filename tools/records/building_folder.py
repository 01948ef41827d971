"""The folder OUT/.building that a set is built in: one build at a time, its state on disk, and the way to OUT.

`progress.json` is {key, state} while images are written, then {key, stage, report}. It is replaced in one step, after
what it speaks of is on the disk, so that a build killed at any moment goes on from it. Proven by
tests/tools/records/test_resume.py.
"""

import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recognition.data.sample_map import MAP_NAME
from recognition.errors import SettingsError

_OWN = ("lock", "progress.json", "progress.new")  # what is not of the set
_UNPACKED = "source "  # a tar unpacked here


@contextmanager
def alone(out: Path, building: Path) -> Iterator[None]:
    """Hold the folder of a build against a second one; the lock ends with the process, however it ends."""
    building.mkdir(parents=True, exist_ok=True)
    with open(building / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(f"{out}: another build is writing there") from error
        try:
            yield
        except BaseException:
            if not (building / "progress.json").exists():  # nothing to go on with
                shutil.rmtree(building)
                if not any(out.iterdir()):
                    out.rmdir()
            raise


def read_progress(building: Path, key: str) -> dict[str, Any]:
    """The state that an interrupted build of the same left, or an empty one, all that it left having been removed."""
    try:
        progress: dict[str, Any] = json.loads((building / "progress.json").read_text())
    except (OSError, ValueError):
        progress = {}
    if progress.get("key") == key:
        return progress
    if progress:
        print(f"{building}: of another source, other settings or another OpenCV; beginning anew", file=sys.stderr)
    for entry in building.iterdir():
        if entry.name != "lock" and not entry.name.startswith(_UNPACKED):
            entry.unlink()
    return {}


def write_progress(building: Path, progress: dict[str, Any]) -> None:
    """Replace the state on disk in one step."""
    fresh = building / "progress.new"
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(progress, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(building / "progress.json")


def is_shard(path: Path) -> bool:
    """Whether a build may have written a .rec file, by its name."""
    return re.fullmatch(r"train(_[0-9]+)?\.rec", path.name) is not None


def remove_old(out: Path) -> None:
    """Remove an earlier set, indices first, so that no mixture ever opens; what else is in the folder stays."""
    stems = [path.stem for path in out.glob("train*.rec") if is_shard(path)]
    for suffix in (".idx", ".crc", ".lst", ".rec"):
        for stem in stems:
            (out / f"{stem}{suffix}").unlink(missing_ok=True)
    for name in ("unreadable.tsv", "without_face.tsv", "landmarks.csv", MAP_NAME):
        (out / name).unlink(missing_ok=True)


def move_into_place(building: Path, out: Path) -> None:
    """Rename all files; the indices come last."""
    names = [path for path in building.iterdir()
             if path.name not in _OWN and not path.name.startswith(_UNPACKED)]
    for path in sorted(names, key=lambda path: (path.suffix == ".idx", path.name)):
        path.replace(out / path.name)
