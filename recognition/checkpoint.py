"""Saving the whole state of a run so that the same command goes on where it stopped, on any number of ranks.

    checkpoints/
      step-000012000/
        replicated.safetensors            what is the same on all ranks: both backbones, the optimiser, the margin's
                                          state, the statistics of the norms
        rows-00000000-00102995.safetensors   classes [start, stop) of every row tensor: centres, their optimiser's rows,
                                             memory and stamps
        rows-00102995-00205990.safetensors   … one file a rank
        state.json                        plain numbers: step, best score
        manifest.json                     size and SHA-256 of all of these; written last
      .step-000013000.unfinished/         being written, or left by a crash; never read, removed by the next save

A save becomes one by the rename of a folder whose files are on disk; a folder without a valid manifest is none. Loading
verifies every byte first, takes the newest good save and says which ones it passed over. No file holds a pickle, so a
hostile one can execute nothing. The folder must be on a file system that all nodes of a run see.
Rows are cut anew when another number of ranks loads them: `rows` reads whatever files overlap [start, stop).
Proven by tests/recognition/test_checkpoint.py.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recognition.distributed import Ranks, all_values, fail_together, from_first
from recognition.errors import CheckpointError

FORMAT = 1
MANIFEST, STATE, REPLICATED = "manifest.json", "state.json", "replicated.safetensors"
ROWS = re.compile(r"rows-(\d+)-(\d+)\.safetensors")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """One verified save. state: the plain numbers that were saved with it. row_files: names, in order of classes."""

    folder: Path
    state: dict[str, Any]
    row_files: list[str]

    def replicated(self) -> dict[str, Tensor]:
        """The tensors that are the same on all ranks, by name, on the CPU."""
        return load_file(self.folder / REPLICATED)

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        """Rows [start, stop) of every row tensor, by name, on the CPU, from the files that hold them."""
        parts: dict[str, list[Tensor]] = {}
        for file_name in self.row_files:
            low, high = _range(file_name)
            first = min(max(start, low), high)
            last = max(min(stop, high), first)
            if first == last and parts:  # one file is always opened, for the names and widths
                continue
            with safe_open(self.folder / file_name, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    parts.setdefault(name, []).append(file.get_slice(name)[first - low : last - low])
        rows = {name: torch.cat(pieces) for name, pieces in parts.items()}
        for name, value in rows.items():
            if len(value) != stop - start:
                raise CheckpointError(f"{self.folder}: {name} has {len(value)} of the classes [{start}, {stop})")
        return rows


def save(
    folder: Path,
    step: int,
    replicated: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    start: int,
    state: Mapping[str, Any],
    ranks: Ranks,
) -> Path:
    """Save on all ranks together; returns when the save is complete on disk.

    replicated: written by rank 0.  rows: this rank's rows of each tensor, the first being class `start`.
    Raises CheckpointError on all ranks when any of them cannot write; the saves before stay as they are.
    """
    final = folder / f"step-{step:09d}"
    unfinished = folder / f".{final.name}.unfinished"

    def prepare() -> dict[str, Any]:
        if ranks.is_first:
            for leftover in folder.glob(".step-*.unfinished"):
                shutil.rmtree(leftover)
            unfinished.mkdir(parents=True)
        return {}

    def write_tensors() -> dict[str, Any]:
        count = len(next(iter(rows.values())))
        own = {f"rows-{start:08d}-{start + count:08d}.safetensors": rows} if count else {}
        if ranks.is_first:
            own[REPLICATED] = replicated
        for name, tensors in own.items():
            save_file({key: value.detach().contiguous() for key, value in tensors.items()}, unfinished / name)
            (unfinished / name).chmod(0o644)  # safetensors' own is the owner's alone
        return {name: _facts(unfinished / name) for name in own}

    def publish() -> dict[str, Any]:
        if ranks.is_first:
            _write_json(unfinished / STATE, {"step": step, **state})
            files[STATE] = _facts(unfinished / STATE)
            _write_json(unfinished / MANIFEST, {"format": FORMAT, "files": files})
            _sync(unfinished)
            if final.exists():
                shutil.rmtree(final)  # a damaged or repeated save of the same step
            unfinished.rename(final)
            _sync(folder)
        return {}

    _together(prepare, f"{unfinished}: cannot start a save", ranks)
    files = _together(write_tensors, f"{unfinished}: cannot write", ranks)
    _together(publish, f"{final}: cannot finish the save", ranks)
    return final


def latest(folder: Path, ranks: Ranks) -> Saved | None:
    """The newest save that verifies, the same on all ranks; None when nothing was ever saved.

    Raises CheckpointError when there are saves and none verifies.
    """
    found = from_first(_newest_good(folder) if ranks.is_first else None, ranks)
    if isinstance(found, str):
        raise CheckpointError(found)
    return found


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest saves (0: none is removed), once the newest verifies; called by one rank."""
    all_saves = saves(folder)
    if all_saves and not problems(all_saves[-1]):
        for old in all_saves[:-keep]:
            try:
                shutil.rmtree(old)
            except OSError as error:
                log.warning("%s: an old checkpoint cannot be removed: %s", old, error)


def saves(folder: Path) -> list[Path]:
    """The folders of all saves, good ones or not, the oldest first."""
    return sorted(folder.glob("step-*"))


def read(folder: Path) -> Saved:
    """One save, after every byte of it was verified. CheckpointError says what is wrong with it."""
    if wrong := problems(folder):
        raise CheckpointError(f"{folder}: {'; '.join(wrong)}")
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return Saved(folder, json.loads((folder / STATE).read_text()), _row_files(files))


def problems(folder: Path) -> list[str]:
    """What is wrong with a save; empty when every byte is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return [f"format {manifest['format']}, expected {FORMAT}"]
        files: dict[str, dict[str, Any]] = manifest["files"]
        if not {STATE, REPLICATED} <= files.keys():
            return [f"{MANIFEST} lacks {STATE} or {REPLICATED}"]
        strange = [name for name in files if name not in (STATE, REPLICATED) and not ROWS.fullmatch(name)]
        if strange:
            return [f"{MANIFEST} names {strange[0]!r}"]
        bounds = [_range(name) for name in _row_files(files)]
        if not bounds or bounds[0][0] != 0 or any(a[1] != b[0] for a, b in pairwise(bounds)):
            return [f"{MANIFEST}: the row files do not cover the classes from 0 without gaps"]
        return [
            f"{name} is {'missing' if not (folder / name).is_file() else 'damaged'}"
            for name, facts in files.items()
            if not (folder / name).is_file() or _facts(folder / name) != facts
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST}: {error}"]


def _newest_good(folder: Path) -> Saved | str | None:
    passed_over = []
    for save_folder in reversed(saves(folder)):
        try:
            return read(save_folder)
        except CheckpointError as error:
            passed_over.append(str(error))
            log.warning("not a good checkpoint, trying the one before: %s", error)
    return "no checkpoint verifies: " + " | ".join(passed_over) if passed_over else None


def _range(name: str) -> tuple[int, int]:
    """Classes [start, stop) of a row file."""
    start, stop = name.removesuffix(".safetensors").split("-")[1:]
    return int(start), int(stop)


def _row_files(files: Mapping[str, Any]) -> list[str]:
    return sorted((name for name in files if ROWS.fullmatch(name)), key=_range)


def _together(action: Callable[[], dict[str, Any]], what: str, ranks: Ranks) -> dict[str, Any]:
    """Run an action on all ranks and join their results; if it fails on any, CheckpointError on all."""
    outcome, failure = {}, None
    try:
        outcome = action()
    except (OSError, SafetensorError) as error:
        failure = CheckpointError(f"{what} on rank {ranks.rank}: {error}")
    fail_together(failure, ranks)
    return {name: value for other in all_values(outcome, ranks) for name, value in other.items()}


def _facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is on the disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_json(path: Path, value: Any) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
