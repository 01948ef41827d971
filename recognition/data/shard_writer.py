"""Write one shard, in either layout: NAME.rec, its NAME.idx, the list NAME.lst and the CRC sidecar NAME.crc.

`ShardWriter` writes the common face layout. Record 0 is the header (flag 2: first identity key, end key); images are
keys 1, 2, … in the order given, which is by label; then comes one record per identity whose labels are [start, end),
the keys of its images in this shard. `PlainShardWriter` writes im2rec's: only images, keys 0, 1, …, labels in any
order. Each record's id is its key. With `label_base` labels are two floats (high, low), and so are the bounds on
identity records (flag 4). Each shard of a set is complete in itself: its own keys, header and identities.
Proven by tests/recognition/data/test_shard_writer.py; read by recognition/data/shard.py.
"""

import os
import zlib
from array import array
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from recognition.data.checksums import crc_path, write_checksums
from recognition.data.recordio import FLOAT32_WHOLE, RecordWriter, pack_record, split_label, write_index
from recognition.errors import DataError


class PlainShardWriter:
    """Add images in any order, then `close`; the set is readable only after that. im2rec layout.

    The files are written in place: give names in a temporary folder and rename after `close`.
    """

    def __init__(self, path: str | Path, label_base: int = 0) -> None:
        self.path = Path(path)
        self.label_base = label_base
        self.num_images = 0
        self._offsets, self._crcs = array("q"), array("I")  # 12 bytes a record
        self._records = RecordWriter(self.path)
        self._list = open(self.path.with_suffix(".lst"), "w", encoding="utf-8", errors="surrogateescape", newline="\n")  # noqa: SIM115

    def _write(self, payload: bytes) -> None:
        self._offsets.append(self._records.write(payload))
        self._crcs.append(zlib.crc32(payload))

    def add(self, label: int, image: bytes, name: str) -> None:
        """Append an encoded image. `name` (the source's path) goes to the list file and holds no tab or line end."""
        if not image:
            raise ValueError(f"an empty image ({name}); a record without an image is an identity record")
        key = len(self._offsets)
        labels = split_label(label, self.label_base) if self.label_base else label
        self._write(pack_record(labels, key, image))
        self._list.write(f"{key}\t{label}\t{name}\n")
        self.num_images += 1

    def close(self) -> None:
        """Write the index and the sidecar, and bring all to the disk."""
        self._records.close()
        self._list.close()
        index, sidecar = self.path.with_suffix(".idx"), crc_path(self.path)
        write_index(index, np.arange(len(self._offsets)), np.frombuffer(self._offsets, np.int64))
        write_checksums(sidecar, self.path.stat().st_size, np.frombuffer(self._crcs, np.uint32))
        for path in (self.path, sidecar, index):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def abandon(self) -> None:
        """Close the files of a shard that will not be finished."""
        self._records.close()
        self._list.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class ShardWriter(PlainShardWriter):
    """Add images in the order of their labels, then `close`. Common face layout."""

    def __init__(self, path: str | Path, label_base: int = 0) -> None:
        super().__init__(path, label_base)
        self._starts: list[int] = []  # the first key of each identity
        self._label = -1
        self._write(pack_record((0, 0), 0, b""))  # its two numbers are known, and written, at the end

    def add(self, label: int, image: bytes, name: str) -> None:
        """Append an encoded image of a label not below the last one; else as in the plain layout."""
        if label < self._label:
            raise ValueError(f"label {label} after {self._label}; images must come in the order of their labels")
        key = len(self._offsets)
        if key >= FLOAT32_WHOLE:
            raise DataError(f"{self.path}: more than {FLOAT32_WHOLE - 1} images in a shard; write more shards")
        super().add(label, image, name)
        if label != self._label:
            self._starts.append(key)
            self._label = label

    def close(self) -> None:
        """Write the identity records and the header's numbers, then as in the plain layout."""
        first = len(self._offsets)
        for start, end in pairwise([*self._starts, first]):
            bounds: tuple[int, ...] = (start, end)
            if self.label_base:
                bounds = (*split_label(start, self.label_base), *split_label(end, self.label_base))
            self._write(pack_record(bounds, len(self._offsets), b""))
        self._records.close()
        # A hint: rounded above 2^24, as nobody counts by it.
        header = pack_record(np.array([first, len(self._offsets)], np.float32), 0, b"")
        self._crcs[0] = zlib.crc32(header)
        with open(self.path, "r+b") as file:
            file.seek(8)  # the payload of record 0
            file.write(header)
        super().close()
