"""Millions of picture names in a few bytes each: one buffer and where each name ends.

A Python string of 30 characters takes 79 bytes and 8 for the list that holds it; here it takes 38. A name is the path
of a picture below its root, `/` between its parts. Proven by tests/tools/records/test_sources.py.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from recognition.errors import DataError


class Names:
    """A list of strings that can only grow; names that no list file can hold (tab, line end) are refused."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a name; a DataError for one with a tab or line end."""
        if "\t" in name or "\n" in name or "\r" in name or "\0" in name:
            raise DataError(f"the name {name!r} has a tab, line end or zero byte; lists cannot hold it")
        self._text += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"name {row}; expected 0 to {len(self) - 1}")
        return self._text[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def take(self, order: np.ndarray) -> "Names":
        """The names of rows `order`, integers [n], in that order."""
        return Names(self[row] for row in order.tolist())

    def hashes(self) -> np.ndarray:
        """A hash of each name, uint64 [n], by which lists are joined: equal ones are equal names but for a chance of
        2^-64 a pair.
        """
        raw = bytearray()
        for row in range(len(self)):
            name = self._text[self._ends[row] : self._ends[row + 1]]
            raw += hashlib.blake2b(name, digest_size=8).digest()
        return np.frombuffer(raw, np.uint64)

    def digest(self) -> bytes:
        """A hash of all names and their order."""
        digest = hashlib.blake2b(self._text, digest_size=16)
        digest.update(self._ends)
        return digest.digest()


def rows_of(names: Names, among: Names) -> np.ndarray:
    """Where each of `names` stands in `among`: int64 [n], −1 for those that are not there."""
    known, wanted = among.hashes(), names.hashes()
    if not len(known):
        return np.full(len(wanted), -1)
    order = np.argsort(known, kind="stable")
    at = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    found: np.ndarray = np.where(known[order][at] == wanted, order[at], -1)
    return found


def first_repeated(names: Names) -> str | None:
    """A name that stands there twice, or None."""
    known = names.hashes()
    order = np.argsort(known, kind="stable")
    same = np.flatnonzero(known[order][1:] == known[order][:-1])
    return names[int(order[same[0] + 1])] if len(same) else None
