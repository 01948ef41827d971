"""Names: of identities (`labels.tsv`, or the folders in the list files) and of images (the list files).

Training needs neither; merging sets and making pairs does. Proven by tests/tools/records/test_names.py.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from recognition.data.dataset import Property
from recognition.errors import DataError

_LARGEST = 10**18  # what surely fits an int64
_BLOCK = 64 << 20  # bytes of a list file looked at at once


class ImageSet(Protocol):
    """What the verbs that copy ask of a set: a RecordDataset, or what `repair` saves of one that does not open."""

    root: Path
    stated: Property
    num_images: int

    @property
    def labels(self) -> np.ndarray:
        """The labels, int64 [num_images]."""

    @property
    def paths(self) -> list[Path]:
        """The .rec files, in order."""

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image, uint8 [bytes]."""

    def place(self, sample: int) -> tuple[Path, int, int]:
        """Where a sample stands: its .rec file, its key in the index, its offset."""

    def where(self, sample: int) -> str:
        """The same in words."""

    def file_order(self) -> np.ndarray:
        """The samples in the order in which they stand in the files, int64 [num_images]."""


class ListFile:
    """A file of lines `key <tab> label <tab> path` through a memory map; 8 bytes a line are held.

    One whose first line is of another form (`aligned <tab> path <tab> label`, or notes) counts as absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        empty = not path.exists() or not path.stat().st_size
        self._data = np.empty(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
        ends = [start + np.flatnonzero(self._data[start : start + _BLOCK] == ord("\n"))
                for start in range(0, len(self._data), _BLOCK)]
        self._ends = np.concatenate([np.empty(0, np.int64), *ends])
        if len(self._data) and self._data[-1] != ord("\n"):
            self._ends = np.append(self._ends, len(self._data))
        if len(self._ends) and self._fields(0) is None:
            self._ends = self._ends[:0]

    def __len__(self) -> int:
        return len(self._ends)

    def line(self, row: int) -> tuple[int, int, str]:
        """Key, label and path of a line; a DataError for a line of another form."""
        if (fields := self._fields(row)) is None:
            raise DataError(f"{self.path}: line {row + 1}: expected 'key<tab>label<tab>path', found "
                            f"{self._text(row)[:60]!r}")
        return fields

    def _fields(self, row: int) -> tuple[int, int, str] | None:
        fields = self._text(row).split("\t")
        try:
            key, label = int(fields[0]), int(float(fields[1]))
        except (ValueError, IndexError, OverflowError):
            return None
        return (key, label, fields[-1]) if 0 <= key < _LARGEST and 0 <= label < _LARGEST else None

    def _text(self, row: int) -> str:
        start = int(self._ends[row - 1]) + 1 if row else 0
        return self._data[start : self._ends[row]].tobytes().decode("utf-8", "surrogateescape").rstrip("\r")

    def __iter__(self) -> Iterator[tuple[int, int, str]]:
        return (self.line(row) for row in range(len(self)))


class ImageNames:
    """The name of each image of a set: its path in the list file of its shard, or `SET/SAMPLE` where there is none."""

    def __init__(self, dataset: ImageSet) -> None:
        self.dataset = dataset
        self.set_name = set_name(dataset.root)
        self._lists = {path: ListFile(path.with_suffix(".lst")) for path in dataset.paths}
        self._rows: dict[Path, dict[int, int]] = {}  # of lists that are not in the order of their keys

    def __getitem__(self, sample: int) -> str:
        path, key, _ = self.dataset.place(sample)
        listed = self._lists[path]
        if not len(listed):
            return f"{self.set_name}/{sample}"
        row = key - listed.line(0)[0]
        if path not in self._rows and not (0 <= row < len(listed) and listed.line(row)[0] == key):
            self._rows[path] = {key: row for row, (key, _, _) in enumerate(listed)}
        row = self._rows[path].get(key, -1) if path in self._rows else row
        return listed.line(row)[2] if row >= 0 else f"{self.set_name}/{sample}"


def set_name(root: Path) -> str:
    """What a set is called: its folder's name, or its file's."""
    return root.resolve().stem if root.is_file() else root.resolve().name


def identity_names(dataset: ImageSet) -> dict[int, str] | None:
    """Names by label, from `labels.tsv` or else from the list files; None where a set has neither.

    A list file names identities when its images stand in a folder for each; others it only numbers.

    Raises:
        DataError: `labels.tsv` with two labels of one name, two names of one label, or no name for a label with images;
            a malformed line of either file.
    """
    labels = dataset.paths[0].parent / "labels.tsv"
    if labels.is_file():
        return _consistent(labels, _labels_file(labels), dataset.labels)
    lists = [ListFile(path.with_suffix(".lst")) for path in dataset.paths]
    pairs = dict.fromkeys((label, Path(path).parent.name) for listed in lists for _, label, path in listed)
    try:
        return _consistent(lists[0].path, pairs, dataset.labels)
    except DataError:
        return None


def _consistent(source: Path, pairs: Iterable[tuple[int, str]], used: np.ndarray) -> dict[int, str]:
    """Names by label, one for each, and for all labels that are used."""
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for label, name in pairs:
        if not name:
            raise DataError(f"{source}: label {label} has no name")
        if names.setdefault(label, name) != name:
            raise DataError(f"{source}: label {label} is both {names[label]!r} and {name!r}")
        if labels.setdefault(name, label) != label:
            raise DataError(f"{source}: {name!r} is both label {labels[name]} and {label}")
    nameless = np.setdiff1d(np.unique(used), np.array(sorted(names), np.int64))
    if len(nameless):
        raise DataError(f"{source}: label {nameless[0]} has images and no name")
    return names


def _labels_file(path: Path) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            label, tab, name = line.rstrip("\r\n").partition("\t")
            if not tab or not label.isdecimal() or len(label) > 18:
                raise DataError(f"{path}: line {number}: expected 'label<tab>name', found {line[:60]!r}")
            yield int(label), name


def write_labels(folder: Path, names: dict[int, str]) -> None:
    """Write `labels.tsv`: a line `label <tab> name`, by label."""
    with open(folder / "labels.tsv", "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(f"{label}\t{names[label]}\n" for label in sorted(names))
