"""Faces by identity and number, from a folder per identity or from a set: where `pairs` takes its pictures from.

The number of a picture is the one at the end of its file's name (`Ann_0007.jpg` is 7), for a set the name in its list
file. Where the pictures of an identity do not all have one of their own, they are counted from 1.
Proven by tests/tools/records/test_pairs.py.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recognition.errors import DataError
from tools.records.names import ImageNames, identity_names
from tools.records.reorder import open_set
from tools.records.sources.source import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Picture:
    """One picture: what it is called, and how its encoded bytes are had (OSError where they are not)."""

    name: str
    read: Callable[[], bytes]


class FolderFaces:
    """A folder with a folder of pictures for each identity; other files are not looked at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, list[str]] = {}
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
            if entry.is_dir() and not entry.name.startswith("."):
                files = [item.name for item in os.scandir(entry.path) if item.name.lower().endswith(IMAGE_SUFFIXES)]
                self._files[entry.name] = sorted(name for name in files if not name.startswith("."))
        if not any(self._files.values()):
            raise DataError(f"{root}: no pictures in folders of identities, and no set")
        self.names = [name for name, files in self._files.items() if files]

    def count(self, name: str) -> int:
        """The number of pictures of an identity."""
        return len(self._files[name])

    def pictures(self, name: str) -> dict[int, Picture]:
        """The pictures of an identity by their numbers."""
        files = self._files[name]
        paths = [self.root / name / file for file in files]
        return dict(zip(_numbers(files), (Picture(str(path), path.read_bytes) for path in paths), strict=True))


class SetFaces:
    """A RecordIO set whose identities have names."""

    def __init__(self, root: Path) -> None:
        self.dataset = open_set(root)
        self._images = ImageNames(self.dataset)
        labels = np.asarray(self.dataset.labels)
        self._order = np.argsort(labels, kind="stable")
        present, starts = np.unique(labels[self._order], return_index=True)
        ends = [*starts[1:].tolist(), len(labels)]
        named = identity_names(self.dataset)
        known = [str(label) if named is None else named[label] for label in present.tolist()]
        self._spans = dict(zip(known, zip(starts.tolist(), ends, strict=True), strict=True))
        self.names = list(self._spans)

    def count(self, name: str) -> int:
        """The number of pictures of an identity."""
        start, end = self._spans[name]
        return end - start

    def pictures(self, name: str) -> dict[int, Picture]:
        """The pictures of an identity by their numbers."""
        samples = self._order[slice(*self._spans[name])].tolist()
        names = [self._images[sample] for sample in samples]
        # SET/SAMPLE, of a set without a list, numbers the set and not the identity.
        listed = all(name != f"{self._images.set_name}/{at}" for name, at in zip(names, samples, strict=True))
        numbers = _numbers(names) if listed else range(1, len(samples) + 1)
        return {number: Picture(self.dataset.where(sample), self._reader(sample))
                for number, sample in zip(numbers, samples, strict=True)}

    def _reader(self, sample: int) -> Callable[[], bytes]:
        return lambda: bytes(self.dataset.encoded(sample))


Faces = FolderFaces | SetFaces


def open_faces(root: Path) -> Faces:
    """Faces of a set where `root` is one, else of a folder per identity."""
    if root.is_file() or any(root.glob("*.rec")):
        return SetFaces(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder or file; expected a folder per identity, or a set")
    return FolderFaces(root)


def _numbers(files: Iterable[str]) -> Iterable[int]:
    found = [re.search(r"(\d{1,9})$", Path(file).stem) for file in files]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(numbers) == len(found) == len(set(numbers)) else range(1, len(found) + 1)
