"""Pictures in a tar file, read where they stand; a compressed one is unpacked once, beside the set being built.

A compressed tar can only be read from its start, and a set needs its pictures by identity: `open_tar` writes the plain
tar into the build's own folder (.building), where it goes away with it. What it unpacks to is bounded by the
archive's size. Links, devices and names that lead out are refused by name. Proven by
tests/tools/records/test_archives.py.
"""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from recognition.errors import DataError
from tools.records.sources.names import Names
from tools.records.sources.source import MAX_FILE, ArchiveFile, Members, is_picture, member_name, stamp_of

# Pictures hardly shrink (a BMP to a third, a smooth one to a tenth); deflate goes to 1032, which only a bomb reaches.
_MAX_RATIO = 64
_FREE_BYTES = 1 << 26
_BLOCK = 1 << 20
_DAMAGES = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open,
}


class TarReader(ArchiveFile):
    """Reads members by place: (offset of the data, bytes)."""

    def read(self, name: str, place: tuple[int, ...] | None) -> bytes:
        """A member's bytes; ValueError for one larger than any picture, or cut."""
        if place is None or place[0] < 0:
            raise FileNotFoundError(2, "no such member")
        offset, size = place
        if size > MAX_FILE:
            raise ValueError(f"{size} bytes; a picture has at most {MAX_FILE}")
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise ValueError("the archive is cut inside this member")
        return data


def tar_members(path: Path, spool: Path) -> Members:
    """List the pictures of a tar file; `spool` is the folder to unpack a compressed one in, whole."""
    try:
        plain = _plain(path, spool)
        with tarfile.open(plain, "r:") as archive:
            return _list(path, archive, plain)
    except _DAMAGES as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: not a tar file, or damaged: {reason}") from error


def _list(path: Path, archive: tarfile.TarFile, plain: Path) -> Members:
    names, places, ignored = Names(), array("q"), []
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # or it keeps half a kilobyte a member
        name = member_name(path, member.name)
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise DataError(f"{path}: member {name!r} is a link, a device or sparse; refused")
        if member.offset_data + member.size > plain.stat().st_size:
            raise DataError(f"{path}: cut inside member {name!r}")
        if not is_picture(name):
            ignored.append(name)
            continue
        names.append(name)
        places.extend((member.offset_data, member.size))
    _check_end(path, archive.offset, plain)
    return Members(names, np.array(places, np.int64).reshape(-1, 2), TarReader(plain), ignored)


def _check_end(path: Path, offset: int, plain: Path) -> None:
    """Demand the block of zeros that ends a tar: tarfile takes a damaged header, or none, for the end as well."""
    with open(plain, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{path}: damaged or cut at offset {offset}: no member and no mark of the end there")


def _plain(path: Path, spool: Path) -> Path:
    """The tar file itself, or the plain copy of a compressed one."""
    with open(path, "rb") as file:
        head = file.read(6)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        return path
    unpacked = spool / f"source {stamp_of(path)}.tar"
    if unpacked.exists():
        return unpacked
    spool.mkdir(parents=True, exist_ok=True)
    for old in spool.glob("source *"):
        old.unlink()
    partial = unpacked.with_suffix(".part")
    limit = min(_FREE_BYTES + _MAX_RATIO * path.stat().st_size, shutil.disk_usage(spool).free - _FREE_BYTES)
    with opener(path) as source, open(partial, "wb") as target:
        if not _copy(source, target, limit):
            partial.unlink()
            raise DataError(f"{path}: unpacks to more than {limit} bytes, {_MAX_RATIO} times its size or all the free "
                            f"space of {spool.parent}; unpack it yourself if you trust it, and build from the folder")
    partial.replace(unpacked)
    return unpacked


def _copy(source: IO[bytes], target: IO[bytes], limit: int) -> bool:
    """Copy all of a file; false as soon as it has more than `limit` bytes."""
    while block := source.read(_BLOCK):
        limit -= len(block)
        if limit < 0:
            return False
        target.write(block)
    return True
