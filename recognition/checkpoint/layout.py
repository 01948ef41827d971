"""What a save consists of: names of its files and folders, and how bytes that may be anybody's are taken in.

JSON is finite plain values within a size limit, on both ways. Files are regular ones that stand in the save's own
folder: no link leads out of it. Proven by tests/recognition/checkpoint/test_hostile.py.
"""

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from recognition.errors import CheckpointError

FORMAT = 1
MANIFEST, STATE, REPLICATED, LABELS = "manifest.json", "state.json", "replicated.safetensors", "labels.txt"
STEP = re.compile(r"step-(\d{9,18})")
UNFINISHED = ".step-*.unfinished"
MAX_JSON_BYTES = 4 << 20
"""Of state.json, manifest.json and a tensor file's header; parsed they take some 25 times as much at worst."""

_ROWS = re.compile(r"rows-(\d{8,18})-(\d{8,18})\.safetensors")


def step_folder(folder: Path, step: int) -> Path:
    """Where the save of a step stands."""
    return folder / f"step-{step:09d}"


def unfinished_folder(folder: Path, step: int) -> Path:
    """Where the save of a step is written."""
    return folder / f".step-{step:09d}.unfinished"


def row_file(start: int, stop: int) -> str:
    """The file of the classes [start, stop)."""
    return f"rows-{start:08d}-{stop:08d}.safetensors"


def row_range(name: str) -> tuple[int, int] | None:
    """The classes [start, stop) of a row file; None for another file's name."""
    found = _ROWS.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered; OSError for anything else, links too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a regular file")
    return open(descriptor, "rb", buffering=0)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A file's content; ValueError for what `read_json` would refuse."""
    content = json.dumps(value, indent=1, allow_nan=False).encode()
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{len(content)} bytes of plain values; expected at most {MAX_JSON_BYTES}")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The dict of a JSON file. CheckpointError when there is none, it is too large, or a number is not finite."""
    try:
        with open_plain(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        return parse_json(content)
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name}: {error}") from None


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object of finite values; ValueError for anything else."""
    try:
        value = json.loads(content, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def is_count(value: Any) -> bool:
    """Whether this is a whole number from 0 to 2^63 − 1."""
    return type(value) is int and 0 <= value < 1 << 63


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number
