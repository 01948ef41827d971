"""Pictures in a zip file, read where they stand, in any order, by several processes.

The directory is read once; a picture is then found by its offset. What a member declares bounds what is inflated, and
what comes out must have the declared size and CRC. Links, encrypted members, and names that lead out are refused by
name. Proven by tests/tools/records/test_archives.py.
"""

import os
import stat
import struct
import zipfile
import zlib
from array import array
from pathlib import Path

import numpy as np

from recognition.errors import DataError
from tools.records.sources.names import Names
from tools.records.sources.source import MAX_FILE, ArchiveFile, Members, is_picture, member_name

_LOCAL = struct.Struct("<4s22xHH")  # signature; name's and extra field's bytes


class ZipReader(ArchiveFile):
    """Reads members by place: (offset of the local header, stored bytes, bytes, method, CRC-32)."""

    def read(self, name: str, place: tuple[int, ...] | None) -> bytes:
        """A member's bytes; ValueError where they are not what the directory says."""
        if place is None or place[0] < 0:
            raise FileNotFoundError(2, "no such member")
        header, stored_size, size, method, crc = place
        if size > MAX_FILE or stored_size > MAX_FILE:
            raise ValueError(f"declares {size} bytes; a picture has at most {MAX_FILE}")
        start = os.pread(self._file, _LOCAL.size, header)
        if len(start) < _LOCAL.size or start[:4] != b"PK\3\4":
            raise ValueError("the archive is damaged: no member begins where its directory says")
        stored = os.pread(self._file, stored_size, header + _LOCAL.size + sum(_LOCAL.unpack(start)[1:]))
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size + 1)
            except zlib.error as error:
                raise ValueError(f"the archive is damaged: {error}") from error
        else:
            data = stored
        if len(data) != size or zlib.crc32(data) != crc:
            raise ValueError(f"the archive is damaged: not the {size} bytes with the CRC that its directory states")
        return data


def zip_members(path: Path) -> Members:
    """List the pictures of a zip file; a DataError for what is no zip, or has members that are refused."""
    names, places, ignored = Names(), array("q"), []
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise DataError(f"{path}: not a zip file, or cut: {error}") from error
    for member in members:
        name = member_name(path, member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{path}: member {name!r} is a link or a device; refused")
        if name.endswith("/"):
            continue
        if not is_picture(name):
            ignored.append(name)
            continue
        if member.flag_bits & 1:
            raise DataError(f"{path}: member {name!r} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: member {name!r} has compression method {member.compress_type}; expected none (0) "
                            "or deflate (8)")
        names.append(name)
        places.extend((member.header_offset, member.compress_size, member.file_size, member.compress_type, member.CRC))
    return Members(names, np.array(places, np.int64).reshape(-1, 5), ZipReader(path), ignored)
