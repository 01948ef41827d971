"""The lists of an IJB-shaped folder (FOLDER/loose_crop, FOLDER/meta): faces, templates, pairs, galleries, probes.

Owns reading and checking; nothing here opens a picture. Lines are counted from 1. A folder may hold the lists of IJB-B
and of IJB-C, and may lack those of 1:1 or of 1:N: `protocols_of` says what can be run and why not the rest. Proven by
tests/eval/test_ijb_lists.py.
"""

import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import DataError, SettingsError

TARGETS = {"IJBB": "ijbb", "IJBC": "ijbc"}  # name → how the names of its lists begin
GALLERIES = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}
PROTOCOLS = ("1:1", "1:N")
LINES_AT_ONCE = 2**20  # of the pair list: 24 MB
STAT_THREADS = 16  # asking a file server for 469,375 sizes is waiting, not work


@dataclass(frozen=True)
class SearchLists:
    """The lists of 1:N; templates by position in `IjbSet.template_ids`."""

    galleries: dict[str, np.ndarray]  # name → int64 [G]
    probe: np.ndarray  # int64 [Q]
    subject: np.ndarray  # int64 [T]; −1 where no list names the template


@dataclass(frozen=True)
class IjbSet:
    """The lists of a folder: F faces, T templates (by position in `template_ids`), P pairs (0: not read)."""

    name: str  # IJBB or IJBC
    folder: Path
    images: list[str]  # [F] file names in loose_crop
    states: np.ndarray  # int64 [F, 2], of the files: bytes, and when they were changed in ns
    landmarks: np.ndarray  # float64 [F, 5, 2]
    scores: np.ndarray  # float64 [F], the detector's
    template_ids: np.ndarray  # int64 [T], sorted
    template: np.ndarray  # int64 [F], position in template_ids
    media: np.ndarray  # int64 [F]
    first: np.ndarray  # int32 [P], position in template_ids
    second: np.ndarray  # int32 [P]
    issame: np.ndarray  # bool [P]
    search: SearchLists | None  # None: not read


def find_target(folder: str | Path, target: str | None = None) -> str:
    """Whether a folder is IJBB or IJBC, by the name of its face list; `target` says which where it holds both.

    Raises DataError when there is none (or not the one asked for), SettingsError when there are both and no target.
    """
    meta = Path(folder) / "meta"
    found = [name for name, prefix in TARGETS.items() if (meta / f"{prefix}_face_tid_mid.txt").is_file()]
    if target is not None:
        if target not in found:
            raise DataError(f"{meta}: expected {TARGETS[target]}_face_tid_mid.txt, got {found or 'neither'}")
        return target
    if not found:
        raise DataError(f"{meta}: expected ijbb_face_tid_mid.txt or ijbc_face_tid_mid.txt, got neither")
    if len(found) > 1:
        raise SettingsError(f"{meta}: holds the lists of IJBB and IJBC; say which with --target IJBB or --target IJBC")
    return found[0]


def protocols_of(folder: str | Path, target: str, wanted: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Which protocols a folder's lists allow, and a line for each one that they do not.

    Args:
        folder: with meta/.
        target: IJBB or IJBC.
        wanted: protocols that must be possible; None = whatever the folder has.

    Raises:
        DataError: one that is wanted is impossible, or all are; the missing list is named.
    """
    meta = Path(folder) / "meta"
    search = [*_gallery_paths(meta, target).values(), _probe_path(meta, target)]
    lists = {"1:1": [_pairs_path(meta, target)], "1:N": search}
    missing = {name: [path for path in lists[name] if not path.is_file()] for name in PROTOCOLS}
    possible = [name for name in PROTOCOLS if not missing[name]]
    for name in wanted or ([] if possible else ["1:1"]):
        if missing[name]:
            raise DataError(f"{missing[name][0]}: no such list; {name} needs it")
    if wanted:
        return [name for name in PROTOCOLS if name in wanted], []
    lacking = {name: _some([path.name for path in missing[name]]) for name in PROTOCOLS if missing[name]}
    return possible, [f"no {name}: {meta} lacks {files}" for name, files in lacking.items()]


def load_ijb(folder: str | Path, target: str | None = None, protocols: Sequence[str] | None = None) -> IjbSet:
    """Read the lists under FOLDER/meta that the protocols need, and look that every image is there.

    Args:
        folder: with loose_crop/ and meta/.
        target: IJBB or IJBC; None = whichever the folder holds.
        protocols: of "1:1" and "1:N"; None = all that the folder has.

    Raises:
        DataError: a list or an image is missing or empty, a line is not what it should be (its number is named), lists
            do not fit each other. SettingsError: see `find_target`.
    """
    folder = Path(folder)
    target = find_target(folder, target)
    protocols, _ = protocols_of(folder, target, protocols)
    meta = folder / "meta"
    images, templates, media = _read_faces(meta / f"{TARGETS[target]}_face_tid_mid.txt")
    landmarks, scores = _read_landmarks(meta / f"{TARGETS[target]}_name_5pts_score.txt", images)
    template_ids, template = np.unique(templates, return_inverse=True)
    first = second = np.empty(0, np.int32)
    issame = np.empty(0, bool)
    if "1:1" in protocols:
        first, second, issame = _read_pairs(_pairs_path(meta, target), template_ids)
    search = _read_search(meta, target, template_ids) if "1:N" in protocols else None
    states = _image_states(folder / "loose_crop", images)
    return IjbSet(
        target, folder, images, states, landmarks, scores, template_ids, template, media, first, second, issame, search
    )  # fmt: skip


def _pairs_path(meta: Path, target: str) -> Path:
    return meta / f"{TARGETS[target]}_template_pair_label.txt"


def _gallery_paths(meta: Path, target: str) -> dict[str, Path]:
    return {name: meta / f"{TARGETS[target]}_1N_gallery_{name}.csv" for name in GALLERIES[target]}


def _probe_path(meta: Path, target: str) -> Path:
    return meta / f"{TARGETS[target]}_1N_probe_mixed.csv"


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not lines:
        raise DataError(f"{path}: empty")
    return lines


def _read_named_numbers(path: Path, columns: int, dtype: type) -> tuple[list[str], np.ndarray]:
    """A list of `name number …`: names [n], numbers [n, columns − 1]."""
    lines = _read_lines(path)
    names = []
    for number, line in enumerate(lines, 1):
        row = line.split()
        if len(row) != columns:
            raise DataError(f"{path}: line {number}: expected {columns} columns, got {len(row)}")
        names.append(row[0])
    return names, _numbers(path, lines, range(1, columns), dtype)


def _numbers(
    path: Path,
    lines: list[str],
    columns: Sequence[int] | None,
    dtype: type,
    start: int = 1,
    delimiter: str | None = None,
) -> np.ndarray:
    """The numbers in some columns (None: all) of lines, [n, columns]; `start` is the number of the first line."""
    options = {"dtype": dtype, "usecols": columns, "comments": None, "ndmin": 2, "delimiter": delimiter}
    try:
        return _load(lines, options)
    except ValueError:
        width = None
        for number, line in enumerate(lines, start):
            try:
                row = _load([line], options)
            except ValueError:
                found = line.strip().split(delimiter)
                found = found[columns[0] : columns[-1] + 1] if columns else found
                raise DataError(f"{path}: line {number}: not numbers: {' '.join(found)[:80]}") from None
            width = width or row.shape[1]
            if row.shape[1] != width:
                raise DataError(f"{path}: line {number}: expected {width} columns, got {row.shape[1]}") from None
        raise


def _load(lines: list[str], options: dict[str, Any]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "loadtxt: input contained no data")
        values = np.loadtxt(lines, **options)
    if len(values) != len(lines):  # loadtxt passes over empty lines
        raise ValueError(f"{len(lines) - len(values)} empty lines")
    return values


def _read_faces(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    images, numbers = _read_named_numbers(path, 3, np.int64)
    for line, name in enumerate(images, 1):
        if "/" in name or "\\" in name:
            raise DataError(f"{path}: line {line}: expected the name of a file, got {name!r}")
    return images, numbers[:, 0], numbers[:, 1]


def _read_landmarks(path: Path, images: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks and scores in the order of `images`: by line where the lists agree line by line, else by name."""
    names, values = _read_named_numbers(path, 12, np.float64)
    if names != images:
        line = {name: number for number, name in enumerate(names)}
        if len(line) != len(names):
            raise DataError(f"{path}: {len(names) - len(line)} names stand twice, in another order than the faces")
        missing = [name for name in images if name not in line]
        if missing:
            raise DataError(f"{path}: no landmarks for {len(missing)} faces: {_some(missing)}")
        values = values[[line[name] for name in images]]
    if not np.isfinite(values).all():
        number = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise DataError(f"{path}: {images[number]}: a landmark or score is not finite")
    return values[:, :10].reshape(-1, 5, 2), values[:, 10]


def _read_pairs(path: Path, template_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions int32 [P], [P] and whether the labels are the same, bool [P]; read in parts, as 15.7M lines are."""
    parts: list[tuple[np.ndarray, ...]] = []
    start = 1
    try:
        with open(path, encoding="utf-8-sig") as file:
            while lines := list(islice(file, LINES_AT_ONCE)):
                parts.append(_pairs(path, lines, start, template_ids))
                start += len(lines)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not parts:
        raise DataError(f"{path}: empty; expected lines of `template template label`")
    first, second, issame = (np.concatenate(column) for column in zip(*parts, strict=True))
    if issame.all() or not issame.any():
        raise DataError(f"{path}: expected pairs of both labels, all {len(issame)} have {int(issame[0])}")
    return first, second, issame


def _pairs(path: Path, lines: list[str], start: int, template_ids: np.ndarray) -> tuple[np.ndarray, ...]:
    pairs = _numbers(path, lines, None, np.int64, start)
    if pairs.shape[1] != 3:
        raise DataError(f"{path}: line {start}: expected 3 columns, got {pairs.shape[1]}")
    wrong = np.flatnonzero((pairs[:, 2] != 0) & (pairs[:, 2] != 1))
    if len(wrong):
        raise DataError(f"{path}: line {start + wrong[0]}: expected label 0 or 1, got {pairs[wrong[0], 2]}")
    first, second = (_positions(path, template_ids, pairs[:, side], start).astype(np.int32) for side in (0, 1))
    return first, second, pairs[:, 2] == 1


def _positions(path: Path, template_ids: np.ndarray, wanted: np.ndarray, start: int) -> np.ndarray:
    position = np.minimum(np.searchsorted(template_ids, wanted), len(template_ids) - 1)
    unknown = np.flatnonzero(template_ids[position] != wanted)
    if len(unknown):
        raise DataError(f"{path}: line {start + unknown[0]}: template {wanted[unknown[0]]} has no face")
    return position


def _read_search(meta: Path, target: str, template_ids: np.ndarray) -> SearchLists:
    subject = np.full(len(template_ids), -1, np.int64)
    paths = _gallery_paths(meta, target)
    galleries = {name: _read_subjects(path, template_ids, subject) for name, path in paths.items()}
    return SearchLists(galleries, _read_subjects(_probe_path(meta, target), template_ids, subject), subject)


def _read_subjects(path: Path, template_ids: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """Templates of a CSV (a header line, then template, subject and maybe more) in the order of the file, each once.

    Lists in use have a line per image, so a template may stand in many, always with one subject. Fills in `subject`.
    """
    head, *lines = _read_lines(path)
    if not lines:
        raise DataError(f"{path}: expected a header line and lines of `template,subject`, got one line")
    if all(field.strip().isdigit() for field in head.split(",")[:2]):
        raise DataError(f"{path}: line 1: expected a header, got numbers: {head[:80]}")
    numbers = _numbers(path, lines, (0, 1), np.int64, 2, ",")
    negative = np.flatnonzero(numbers[:, 1] < 0)
    if len(negative):
        raise DataError(f"{path}: line {2 + negative[0]}: subject {numbers[negative[0], 1]}; expected 0 or above")
    position = _positions(path, template_ids, numbers[:, 0], 2)
    fresh = subject[position] < 0
    subject[position[fresh]] = numbers[fresh, 1]
    other = np.flatnonzero(subject[position] != numbers[:, 1])
    if len(other):
        template, known = numbers[other[0], 0], subject[position[other[0]]]
        raise DataError(f"{path}: line {2 + other[0]}: template {template} is of subject {known} in an earlier line")
    _, where = np.unique(position, return_index=True)
    return position[np.sort(where)]


def _image_states(folder: Path, images: list[str]) -> np.ndarray:
    """Bytes and time of change in ns of the files, int64 [F, 2]; DataError naming what is missing, empty or no file."""
    if not folder.is_dir():
        raise DataError(f"{folder}: cannot be read: no such folder")
    parts = [images[start : start + 1024] for start in range(0, len(images), 1024)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        states = np.concatenate(list(pool.map(lambda part: _states(folder, part), parts)))
    for value, what in ((-1, "are missing"), (0, "are empty")):
        names = [images[number] for number in np.flatnonzero(states[:, 0] == value)]
        if names:
            raise DataError(f"{folder}: {len(names)} of {len(images)} images {what}: {_some(names)}")
    return states


def _states(folder: Path, images: list[str]) -> np.ndarray:
    states = np.full((len(images), 2), -1, np.int64)
    for number, name in enumerate(images):
        try:
            found = os.stat(f"{folder}/{name}")
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode):
            states[number] = found.st_size, found.st_mtime_ns
    return states


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
