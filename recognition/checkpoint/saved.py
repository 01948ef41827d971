"""Reading saves: what is wrong with one, the newest good one, its tensors for any number of ranks.

Whatever is wrong is a CheckpointError that names the save and the file. Several ranks share the work of verifying.
Proven by tests/recognition/checkpoint/test_saved.py and test_hostile.py.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recognition.checkpoint.layout import (
    FORMAT,
    LABELS,
    MANIFEST,
    REPLICATED,
    STATE,
    STEP,
    is_count,
    open_plain,
    read_json,
    row_range,
)
from recognition.checkpoint.tensor_file import Entry, facts_of, read_header, read_rows, read_tensors
from recognition.distributed import Ranks, all_values, from_first
from recognition.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """One verified save. state: the plain values that were saved with it. row_files: names, in order of classes."""

    folder: Path
    state: dict[str, Any]
    row_files: list[str]

    @property
    def step(self) -> int:
        """Optimiser steps taken before the save."""
        step: int = self.state["step"]
        return step

    @property
    def num_classes(self) -> int:
        """Classes of all row files together."""
        return _range(self.row_files[-1])[1]

    def labels_file(self) -> bytes | None:
        """The names of the classes, one a line; None when the set that was trained on has none."""
        path = self.folder / LABELS
        try:
            with open_plain(path) as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def labels(self) -> list[str] | None:
        """The name of each class, "" for one without; None when the set that was trained on has none."""
        content = self.labels_file()
        if content is None:
            return None
        names = content.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
        if len(names) != self.num_classes:
            raise CheckpointError(f"{self.folder / LABELS}: {len(names)} names of {self.num_classes} classes")
        return names

    def replicated(self) -> dict[str, Tensor]:
        """The tensors that are the same on all ranks, by name, on the CPU."""
        return read_tensors(self.folder / REPLICATED)

    def row_headers(self) -> dict[str, Entry]:
        """The row tensors, by name, as the first row file holds them: their dtype, and the shape of its rows."""
        return read_header(self.folder / self.row_files[0])

    def rows(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Rows [start, stop) of every row tensor, or of those named, by name, on the CPU, from the files with them."""
        names = None if names is None else list(names)
        parts: dict[str, list[Tensor]] = {}
        for file_name in self.row_files:
            low, high = _range(file_name)
            first = min(max(start, low), high)
            last = max(min(stop, high), first)
            if first == last and parts:  # one file is always opened, for the names and widths
                continue
            for name, rows in read_rows(self.folder / file_name, first - low, last - low, names).items():
                parts.setdefault(name, []).append(rows)
        if strange := [name for name, pieces in parts.items() if len({(x.dtype, x.shape[1:]) for x in pieces}) > 1]:
            raise CheckpointError(f"{self.folder}: {strange[0]} differs between the row files")
        joined = {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces) for name, pieces in parts.items()}
        for name, value in joined.items():
            if len(value) != stop - start:
                raise CheckpointError(f"{self.folder}: {name} has {len(value)} of the classes [{start}, {stop})")
        return joined


def latest(folder: Path, ranks: Ranks) -> Saved | None:
    """The newest save that verifies, the same on all ranks; None when nothing was ever saved.

    A collective: all ranks call it. Raises CheckpointError on all when there are saves and none verifies.
    """
    return _newest_good(saves(folder), ranks)


def open_save(path: Path, ranks: Ranks) -> Saved:
    """The newest save that verifies of a run's folder or of its folder of saves, or one save itself.

    A collective: all ranks call it. Raises CheckpointError on all when there is none.
    """
    found = _newest_good(saves_in(path), ranks)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint here; expected a run's folder, its checkpoints, or one of them")
    return found


def saves_in(path: Path) -> list[Path]:
    """The saves that a path means, the oldest first: a run's, those of a folder of saves, or the save itself."""
    if STEP.fullmatch(path.name) or (path / MANIFEST).is_file():
        return [path]
    return saves(path / "checkpoints") or saves(path)


def _newest_good(candidates: list[Path], ranks: Ranks) -> Saved | None:
    """The last that verifies, of rank 0's candidates, the oldest first; None when there are none."""
    passed_over = []
    for path in from_first(list(reversed(candidates)) if ranks.is_first else None, ranks):
        # Each rank reads a share of the files; what any of them finds, or does not find, counts for all.
        found = all_values(_problems(path, ranks.rank, ranks.world_size), ranks)
        if not any(found):
            return _open(path)
        passed_over.append(f"{path}: {'; '.join(dict.fromkeys(wrong for part in found for wrong in part))}")
        if ranks.is_first:
            log.warning("not a good checkpoint, trying the one before: %s", passed_over[-1])
    if passed_over:
        raise CheckpointError("no checkpoint verifies: " + " | ".join(passed_over))
    return None


def saves(folder: Path) -> list[Path]:
    """The folders of all saves, good ones or not, the oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def read(folder: Path) -> Saved:
    """One save, after every byte of it was verified. CheckpointError says what is wrong with it."""
    if wrong := problems(folder):
        raise CheckpointError(f"{folder}: {'; '.join(wrong)}")
    return _open(folder)


def problems(folder: Path) -> list[str]:
    """What is wrong with a save; empty when every byte is as it was written and what it claims can be."""
    return _problems(folder, 0, 1)


def damaged(folder: Path, files: Mapping[str, Mapping[str, Any]], from_disk: bool = False) -> list[str]:
    """What is wrong with files of which size and SHA-256 are known."""
    wrong = []
    for name, facts in files.items():
        try:
            if facts_of(folder / name, facts["bytes"], from_disk) != facts:
                wrong.append(f"{name} is damaged")
        except FileNotFoundError:
            wrong.append(f"{name} is missing")
        except OSError as error:
            wrong.append(f"{name}: {error.strerror or error}")
    return wrong


def _problems(folder: Path, share: int, shares: int) -> list[str]:
    """What is wrong with a save, of whose files this is the share-th of `shares` to look into."""
    try:
        files = _manifest(folder)
        rows = _row_files(files)
        if not rows or _range(rows[0])[0] != 0 or any(_range(a)[1] != _range(b)[0] for a, b in pairwise(rows)):
            return [f"{MANIFEST}: the row files do not cover the classes from 0 without gaps"]
        names = list(files)[share::shares]
        if wrong := damaged(folder, {name: files[name] for name in names}):
            return wrong
        for name in names:
            _check(folder / name)
    except CheckpointError as error:
        return [str(error).removeprefix(f"{folder}/")]
    return []


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of a save, by name."""
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{MANIFEST}: format {str(manifest.get('format'))[:40]}, expected {FORMAT}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not {STATE, REPLICATED} <= files.keys():
        raise CheckpointError(f"{MANIFEST} lacks {STATE} or {REPLICATED}")
    for name, facts in files.items():
        if name not in (STATE, REPLICATED, LABELS) and row_range(name) is None:
            raise CheckpointError(f"{MANIFEST} names {name[:80]!r}")
        if not isinstance(facts, dict) or facts.keys() != {"bytes", "sha256"} or not is_count(facts["bytes"]):
            raise CheckpointError(f"{MANIFEST}: {name}: {str(facts)[:80]}; expected its size and SHA-256")
    return files


def _check(path: Path) -> None:
    """CheckpointError unless a file that is as it was written also holds what a file of its name does."""
    if path.name == STATE:
        state = read_json(path)
        if not is_count(state.get("step")) or type(state.get("score")) not in (int, float, type(None)):
            raise CheckpointError(f"{path}: lacks a step, or its score is no number")
    elif path.name == REPLICATED:
        read_header(path)
    elif bounds := row_range(path.name):
        for name, entry in read_header(path).items():
            if not entry.shape or entry.shape[0] != bounds[1] - bounds[0]:
                raise CheckpointError(f"{path}: {name} has the shape {list(entry.shape)}")


def _open(folder: Path) -> Saved:
    return Saved(folder, read_json(folder / STATE), _row_files(_manifest(folder)))


def _row_files(files: Iterable[str]) -> list[str]:
    return sorted((name for name in files if row_range(name)), key=_range)


def _range(name: str) -> tuple[int, int]:
    """Classes [start, stop) of a row file."""
    bounds = row_range(name)
    assert bounds is not None
    return bounds
