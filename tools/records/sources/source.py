"""What every kind of source becomes: names of pictures in the order of the set, whose each is, and how to read one.

Identities are in natural order (n_2 before n_10), so that folders or labels 0, 1, … n−1 become labels 0, 1, … n−1;
pictures stay in the order given within an identity, or are sorted by name. A `Reader` is sent to other processes and
opens what it needs there. Proven by tests/tools/records/test_sources.py.
"""

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from recognition.errors import DataError
from tools.records.sources.names import Names, first_repeated

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MAX_FILE = 1 << 28  # bytes of one picture's file: a BMP of the largest picture that is decoded takes 108 MB


class Reader(Protocol):
    """Reads a picture's bytes by its name and, of an archive, its place. OSError or ValueError when it cannot."""

    def read(self, name: str, place: tuple[int, ...] | None) -> bytes:
        """The encoded picture."""


class ArchiveFile:
    """A file that members are read from by place; each process opens it anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _file(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}


class Members(NamedTuple):
    """The pictures in an archive: places int64 [n, k], in its order; `ignored` are files that are no pictures."""

    names: Names
    places: np.ndarray | None
    reader: Reader
    ignored: list[str]


@dataclass(frozen=True)
class Source:
    """Pictures in the order of the set. `identity` int32 [n] counts `identities` and never falls.

    `places` int64 [n, k] are where an archive has them; `landmarks` float32 [n, 5, 2], NaN where unknown;
    `stamp` says which version of the file or files this was; `notes` are for the user.
    """

    root: Path
    kind: str
    names: Names
    identity: np.ndarray
    identities: list[str]
    reader: Reader
    places: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    ignored: list[str] = field(default_factory=list)
    stamp: str = ""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """A hash of what this source lists: the same again means that an interrupted build can go on."""
        digest = hashlib.blake2b(f"{self.kind} {self.stamp} ".encode(), digest_size=16)
        digest.update(self.names.digest() + self.identity.tobytes())
        digest.update("\n".join(self.identities).encode("utf-8", "surrogateescape"))
        for numbers in (self.places, self.landmarks):
            digest.update(b"" if numbers is None else np.ascontiguousarray(numbers).tobytes())
        return digest.hexdigest()

    def without(self, left_out: np.ndarray) -> "Source":
        """The source less some identities, bool [identities]."""
        keep = ~left_out[self.identity]
        number = np.cumsum(~left_out) - 1
        return replace(
            self, names=self.names.take(np.flatnonzero(keep)), identity=number[self.identity[keep]].astype(np.int32),
            identities=[name for name, gone in zip(self.identities, left_out, strict=True) if not gone],
            places=None if self.places is None else self.places[keep],
            landmarks=None if self.landmarks is None else self.landmarks[keep])


def natural(name: str) -> tuple[list[str | int], str]:
    """A sort key in which n_2 comes before n_10."""
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"([0-9]{1,18})", name))], name


def identity_order(labels: np.ndarray, identities: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Sort by identity: (order of the rows int64 [n], identity of the sorted rows int32 [n], names of identities).

    `labels` int [n] are rows of `identities`, in any order; rows of one identity keep theirs.
    """
    ranked = sorted(range(len(identities)), key=lambda row: natural(identities[row]))
    rank = np.empty(len(identities), np.int32)
    rank[ranked] = np.arange(len(identities), dtype=np.int32)
    sorted_by = np.argsort(rank[labels], kind="stable")
    return sorted_by, rank[labels][sorted_by], [identities[row] for row in ranked]


def by_folder(root: Path, kind: str, members: Members, stamp: str) -> Source:
    """The source that an archive of IDENTITY/FILE is, below whatever folders all of it stands in."""
    repeated = first_repeated(members.names)
    if repeated is not None:
        raise DataError(f"{root}: member {repeated!r} stands there twice")
    depth = len(_common_folders(members.names))
    labels, rows, number, ignored = [], [], {}, list(members.ignored)  # type: ignore[var-annotated]
    for row, name in enumerate(members.names):
        parts = name.split("/")
        if len(parts) != depth + 2:
            ignored.append(name)
            continue
        rows.append(row)
        labels.append(number.setdefault(parts[depth], len(number)))
    if not rows:
        raise DataError(f"{root}: no pictures IDENTITY/FILE in it ({', '.join(IMAGE_SUFFIXES)})")
    order, identity, identities = identity_order(np.array(labels), list(number))
    order = np.array(rows)[order]
    ends = np.flatnonzero(np.diff(identity, append=-1)) + 1
    start = 0
    for end in ends.tolist():  # an archive's order means nothing: by name, as of a folder
        order[start:end] = sorted(order[start:end].tolist(), key=members.names.__getitem__)
        start = end
    places = None if members.places is None else members.places[order]
    names = members.names.take(order)
    if depth and places is not None:  # what is read by its name keeps it
        names = Names(name.split("/", depth)[depth] for name in names)
    return Source(root, kind, names, identity, identities, members.reader, places, None, ignored, stamp)


def _common_folders(names: Names) -> list[str]:
    """The folders that all identities' folders stand in."""
    common: list[str] | None = None
    for name in names:
        above = name.split("/")[:-2]
        if common is None:
            common = above
        while common != above[: len(common)]:
            common = common[:-1]
        if not common:
            break
    return common or []


def member_name(root: Path, name: str) -> str:
    """A member's name with `/` between its parts; a DataError for one that would lead out of its archive."""
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in plain.split("/"):
        raise DataError(f"{root}: member {name!r} leads out of the archive; refused")
    return plain


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture; hidden files (of macOS, say) are none."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def stamp_of(path: Path) -> str:
    """Size and time of a file: another stamp, another file."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"
