"""A shard that a build can go on with after it was killed.

Beside the files of `ShardWriter` it writes NAME.log, 28 bytes a record: what is otherwise only in memory until the
shard is closed (offset, CRC), the label, and a digest of the image for finding pictures that stand there twice. `sync`
brings all to the disk and says how long each file is; `ResumableShard(…, sizes)` cuts them back to those sizes and goes
on. Proven by tests/tools/records/test_resume.py: the bytes are those of a build that was never stopped.
"""

import os
import struct
from array import array
from io import BufferedWriter
from pathlib import Path
from typing import TextIO

import numpy as np

from recognition.data.recordio import RecordWriter
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError

_ROW = struct.Struct("<qq8sI")
IDENTITY_BYTES = 48  # an identity record with its frame, at most (two floats a bound)
LOG = np.dtype([("offset", "<i8"), ("label", "<i8"), ("digest", "<u8"), ("crc", "<u4")])  # the same in NumPy's words


class _RecordsContinued(RecordWriter):
    """Goes on writing records at the end of the first `size` bytes of a file."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._file = continued(path, size)
        self._offset = size


def continued(path: Path, size: int) -> BufferedWriter:
    """A file that was written before, opened to go on after its first `size` bytes."""
    if path.stat().st_size < size:
        raise DataError(f"{path}: shorter than the {size} bytes that an interrupted build wrote; delete the folder "
                        f"{path.parent} to begin again")
    os.truncate(path, size)
    return open(path, "ab")


class ResumableShard(ShardWriter):
    """`ShardWriter` that can stop at any `sync` and go on in another process."""

    def __init__(self, path: Path, label_base: int = 0, sizes: dict[str, int] | None = None) -> None:
        if sizes is None:
            super().__init__(path, label_base)
            self._log = open(path.with_suffix(".log"), "wb")  # noqa: SIM115 - closed by close()
            return
        self.path, self.label_base = path, label_base
        self._records = _RecordsContinued(path, sizes[".rec"])
        continued(path.with_suffix(".lst"), sizes[".lst"]).close()
        self._list = open(path.with_suffix(".lst"), "a", encoding="utf-8", errors="surrogateescape", newline="\n")  # noqa: SIM115
        self._log = continued(path.with_suffix(".log"), sizes[".log"])
        log = np.fromfile(path.with_suffix(".log"), LOG)
        self.num_images = len(log)
        self._offsets, self._crcs = array("q", [0]), array("I", [0])  # the header's CRC is known in the end
        self._offsets.frombytes(log["offset"].astype(np.int64).tobytes())
        self._crcs.frombytes(log["crc"].astype(np.uint32).tobytes())
        starts = np.flatnonzero(np.diff(log["label"], prepend=-1)) + 1
        self._starts, self._label = starts.tolist(), int(log["label"][-1]) if len(log) else -1

    @property
    def size(self) -> int:
        """Bytes of the .rec file, were it closed now."""
        return self._records._offset + IDENTITY_BYTES * len(self._starts)

    def add_logged(self, label: int, image: bytes, name: str, digest: bytes) -> None:
        """`add`, and remember what is needed to go on."""
        self.add(label, image, name)
        self._log.write(_ROW.pack(self._offsets[-1], label, digest, self._crcs[-1]))

    def sync(self) -> dict[str, int]:
        """Bring all to the disk; the size of each file by its suffix."""
        sizes = {}
        for suffix, file in ((".rec", self._records._file), (".lst", self._list), (".log", self._log)):
            sizes[suffix] = sync(file)
        return sizes

    def close(self) -> None:
        """Finish the shard; the log stays."""
        self._log.close()
        super().close()

    def abandon(self) -> None:
        """Close the files of a shard that is not finished."""
        self._log.close()
        super().abandon()


def sync(file: BufferedWriter | TextIO) -> int:
    """Bring an open file to the disk, and say how many bytes it has."""
    file.flush()
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size
