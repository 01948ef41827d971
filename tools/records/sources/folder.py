"""A folder with one folder of pictures for each identity, or pictures below a folder by their paths.

Proven by tests/tools/records/test_sources.py.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from recognition.errors import DataError
from tools.records.sources.names import Names
from tools.records.sources.source import IMAGE_SUFFIXES, MAX_FILE, Source, natural


class FolderReader:
    """Reads files below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str, place: tuple[int, ...] | None) -> bytes:
        """The bytes of ROOT/NAME; a file larger than any picture is a ValueError."""
        with open(self.root / name, "rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise ValueError(f"more than {MAX_FILE} bytes")
        return data


def open_folder(root: Path) -> Source:
    """Find the identities of a folder; a DataError for a folder without images, which would be a class without any."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one folder per identity with its images")
    names, identity, identities, ignored, empty = Names(), [], [], [], []
    stamps = hashlib.blake2b(digest_size=16)
    for entry in sorted(os.scandir(root), key=lambda entry: natural(entry.name)):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            ignored.append(entry.name)
            continue
        before = len(names)
        for item in sorted(os.scandir(entry.path), key=lambda item: item.name):
            if item.name.startswith("."):
                continue
            if item.is_file() and item.name.lower().endswith(IMAGE_SUFFIXES):
                names.append(f"{entry.name}/{item.name}")
                stamps.update(_stamp(item))
            else:
                ignored.append(f"{entry.name}/{item.name}")
        if len(names) == before:
            empty.append(entry.name)
        identity.append(len(names) - before)
        identities.append(entry.name)
    if not identities:
        raise DataError(f"{root}: no folders in it; expected one folder per identity with its images")
    if empty:
        shown = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        raise DataError(f"{root}: {len(empty)} identity folder(s) without images ({shown}); remove them or fill them")
    rows = np.repeat(np.arange(len(identities), dtype=np.int32), identity)
    stamp = stamps.hexdigest()
    return Source(root, "folder", names, rows, identities, FolderReader(root), ignored=ignored, stamp=stamp)


def stamp_of_files(root: Path, names: Names) -> str:
    """Which versions the files ROOT/NAME are of: a hash of the size and time of each."""
    stamps = hashlib.blake2b(digest_size=16)
    for name in names:
        stamps.update(_stamp(root / name))
    return stamps.hexdigest()


def _stamp(file: "os.DirEntry[str] | Path") -> bytes:
    try:
        status = file.stat()
    except OSError:  # the build will say why
        return b"none "
    return f"{status.st_size} {status.st_mtime_ns} ".encode()
