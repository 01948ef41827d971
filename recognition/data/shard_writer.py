"""Write one shard in the common face layout: NAME.rec with header and identity records, its NAME.idx and NAME.lst.

Record 0 is the header (flag 2: first identity key, end key); images are keys 1, 2, … in the order given, which is by
label; then comes one record per identity whose labels are [start, end), the keys of its images in this shard. Each
record's id is its key. With `label_base` labels are two floats (high, low), and so are the bounds on identity records
(flag 4). Each shard of a set is complete in itself: its own keys, header and identities.
Proven by tests/recognition/data/test_shard_writer.py; read by recognition/data/shard.py.
"""

import os
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np

from recognition.data.recordio import FLOAT32_WHOLE, RecordWriter, pack_record, split_label, write_index
from recognition.errors import DataError


class ShardWriter:
    """Add images in the order of their labels, then `close`; the set is readable only after that.

    The files are written in place: give names in a temporary folder and rename after `close`.
    """

    def __init__(self, path: str | Path, label_base: int = 0) -> None:
        self.path = Path(path)
        self.label_base = label_base
        self.num_images = 0
        self._starts: list[int] = []  # the first key of each identity
        self._label = -1
        self._offsets: list[int] = []
        self._records = RecordWriter(self.path)
        self._list = open(self.path.with_suffix(".lst"), "w", encoding="utf-8", errors="surrogateescape", newline="\n")  # noqa: SIM115
        self._write(pack_record((0, 0), 0, b""))  # its two numbers are known, and written, at the end

    def _write(self, payload: bytes) -> None:
        self._offsets.append(self._records.write(payload))

    def add(self, label: int, image: bytes, name: str) -> None:
        """Append an encoded image. `name` (the source's path) goes to the list file and holds no tab or line end."""
        if label < self._label:
            raise ValueError(f"label {label} after {self._label}; images must come in the order of their labels")
        if not image:
            raise ValueError(f"an empty image ({name}); a record without an image is an identity record")
        key = len(self._offsets)
        if key >= FLOAT32_WHOLE:
            raise DataError(f"{self.path}: more than {FLOAT32_WHOLE - 1} images in a shard; write more shards")
        if label != self._label:
            self._starts.append(key)
            self._label = label
        labels = split_label(label, self.label_base) if self.label_base else label
        self._write(pack_record(labels, key, image))
        self._list.write(f"{key}\t{label}\t{name}\n")
        self.num_images += 1

    def close(self) -> None:
        """Write the identity records, the header's numbers and the index, and bring all to the disk."""
        first = len(self._offsets)
        for start, end in pairwise([*self._starts, first]):
            bounds: tuple[int, ...] = (start, end)
            if self.label_base:
                bounds = (*split_label(start, self.label_base), *split_label(end, self.label_base))
            self._write(pack_record(bounds, len(self._offsets), b""))
        self._records.close()
        self._list.close()
        header = np.array([first, len(self._offsets)], np.float32)  # a hint: rounded above 2^24, as nobody counts by it
        with open(self.path, "r+b") as file:
            file.seek(8)  # the payload of record 0
            file.write(pack_record(header, 0, b""))
        index = self.path.with_suffix(".idx")
        write_index(index, np.arange(len(self._offsets)), np.array(self._offsets, np.int64))
        for path in (self.path, index):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def abandon(self) -> None:
        """Close the files of a shard that will not be finished."""
        self._records.close()
        self._list.close()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()
