"""The CRC sidecar of a shard, NAME.crc: a CRC-32 of every record's payload, by which one flipped bit is found.

Framing and labels are checked without it; inside an image nothing else shows that a bit has changed, as a damaged JPEG
nearly always decodes. Little-endian: `RECCRC32 | u64 bytes of NAME.rec | u64 records | u32 CRC-32 of what follows |
u32 0`, then one u32 a record, in the order of their offsets. The CRC (zlib's, polynomial 0xEDB88320) is of the payload
as a reader returns it, whatever parts it was split into. Proven by tests/recognition/data/test_checksums.py.
"""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recognition.errors import DataError

_HEAD = struct.Struct("<8sQQII")
_MAGIC = b"RECCRC32"


class Checksums(NamedTuple):
    """What a sidecar states: the bytes of its .rec file, and a CRC for each record, uint32 [n]."""

    size: int
    records: np.ndarray


def crc_path(rec: Path) -> Path:
    """Where the sidecar of a .rec file stands."""
    return rec.with_suffix(".crc")


def write_checksums(path: Path, size: int, records: np.ndarray) -> None:
    """Write a sidecar for a .rec file of `size` bytes; `records` are the CRCs, integers [n], in the file's order."""
    table = np.asarray(records).astype("<u4").tobytes()
    path.write_bytes(_HEAD.pack(_MAGIC, size, len(table) // 4, zlib.crc32(table), 0) + table)


def read_checksums(path: Path) -> Checksums:
    """Read a sidecar; a DataError when it is none, is cut, or does not have its own CRC."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if len(data) < _HEAD.size or data[: len(_MAGIC)] != _MAGIC:
        raise DataError(f"{path}: not a CRC sidecar; `rec_builder.py index --only crc` writes a new one")
    _, size, count, own, zero = _HEAD.unpack_from(data)
    table = data[_HEAD.size :]
    if len(table) != 4 * count or zlib.crc32(table) != own or zero:
        raise DataError(f"{path}: the sidecar itself is damaged ({len(table)} bytes for {count} records)")
    return Checksums(size, np.frombuffer(table, "<u4"))
