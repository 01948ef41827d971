"""One shard of a set, a .rec file and its index, checked whole and read into arrays without a Python loop a record.

The frame and the header of every record are read through the memory map in vectorised blocks. Every byte of the file
is accounted for: records follow each other without a gap, each is in the index once, padding is zero. Labels must be
whole, ≥ 0 and < the number of classes. Records without an image are the header record (key 0) and identity records.
Every fault is a DataError `FILE: record K @ offset N: reason`. Proven by tests/recognition/data/test_dataset.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recognition.data.recordio import (
    FIRST,
    FLOAT32_WHOLE,
    FRAME_BYTES,
    IMAGE_HEADER,
    LENGTH_BITS,
    MAGIC,
    MAX_LENGTH,
    RecordReader,
    read_index,
    record_error,
)
from recognition.errors import DataError

_BLOCK = 1 << 18  # records checked at once: bounds the temporary arrays to some tens of megabytes


class Shard(NamedTuple):
    """One .rec file's samples in the order of their keys: offsets, labels int64 [n]; keys int64 [n] or a range."""

    reader: RecordReader
    keys: np.ndarray | range
    offsets: np.ndarray
    labels: np.ndarray


def open_shard(path: Path, num_classes: int | None = None, label_base: int = 0) -> Shard:
    """Check one .rec file and its index; the samples in it.

    Labels must be below `num_classes` where that is known. `label_base` > 0 reads two floats as high · base + low.
    """
    index = path.with_suffix(".idx")
    reader = RecordReader(path)
    keys, offsets = read_index(index)
    if not len(keys):
        raise DataError(f"{index}: lists no record")
    order = _ordered(keys)
    if order is not None:
        keys, offsets = keys[order], offsets[order]
    if (same := keys[1:] == keys[:-1]).any():
        at = int(np.argmax(same))
        raise DataError(f"{index}: key {keys[at]} twice, at offsets {offsets[at]} and {offsets[at + 1]}")
    labels, has_image = np.empty(len(keys), np.int64), np.empty(len(keys), bool)
    order = _ordered(offsets)
    for start in range(0, len(keys), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(keys))) if order is None else order[start : start + _BLOCK]
        if start + _BLOCK < len(keys):
            following = offsets[start + _BLOCK if order is None else order[start + _BLOCK]]
        else:
            following = reader.size
        block = _Block(reader, keys[rows], offsets[rows], int(following), start == 0)
        labels[rows], has_image[rows] = block.check(num_classes, label_base)
    _check_layout(reader, keys, offsets, has_image)
    if not has_image.all():
        keys, offsets, labels = keys[has_image], offsets[has_image], labels[has_image]
    consecutive = len(keys) > 0 and int(keys[-1]) - int(keys[0]) == len(keys) - 1
    return Shard(reader, range(int(keys[0]), int(keys[-1]) + 1) if consecutive else keys, offsets, labels)


def _ordered(values: np.ndarray) -> np.ndarray | None:
    """The order that sorts, or None where it already is sorted, as nearly always."""
    return None if (values[1:] >= values[:-1]).all() else np.argsort(values, kind="stable")


def _check_layout(reader: RecordReader, keys: np.ndarray, offsets: np.ndarray, has_image: np.ndarray) -> None:
    """Records without an image may only be the header record, key 0, and after the last image identity records.

    What numbers the header states is not looked at: they are a hint, and the index counts.
    """
    bare = np.flatnonzero(~has_image)
    if not len(bare):
        return
    images = np.flatnonzero(has_image)
    last = int(images[-1]) if len(images) else -1
    has_header = int(keys[0]) == 0 and int(bare[0]) == 0
    misplaced = bare[(bare < last) & (bare > 0)] if has_header else bare
    if len(misplaced):
        at = int(misplaced[0])
        reason = "no image: a header or identity record where the layout has an image" if has_header else (
            "no image, and the set has no header record (key 0) that would make this an identity record"
        )
        raise record_error(reader.path, int(keys[at]), int(offsets[at]), reason)


class _Block:
    """Consecutive records of a shard in the order of the file, checked together.

    `following` is where the record after the block begins, or the file's size. Arrays have one entry a record.
    """

    def __init__(
        self, reader: RecordReader, keys: np.ndarray, offsets: np.ndarray, following: int, is_first: bool
    ) -> None:
        self.reader, self.keys, self.offsets = reader, keys, offsets
        self.expected_end = np.append(offsets[1:], following)
        self.is_first = is_first

    def check(self, num_classes: int | None, label_base: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [n] (−1 where there is no image) and whether there is an image, bool [n]."""
        self._check_frames()
        self._read_headers()
        has_image = self.image_bytes > 0
        self._fail(~has_image & (self.flag < 2), lambda at: "no image and no label range: neither image nor header")
        labels = self._labels(num_classes, label_base)
        labels[~has_image] = -1
        return labels, has_image

    def _fail(self, wrong: np.ndarray, reason: Callable[[int], str]) -> None:
        if wrong.any():
            at = int(np.argmax(wrong))
            raise record_error(self.reader.path, int(self.keys[at]), int(self.offsets[at]), reason(at))

    def _check_frames(self) -> None:
        """Frames, padding, and that each record ends where the next one begins: no byte is left unaccounted for."""
        reader, offsets = self.reader, self.offsets
        index = reader.path.with_suffix(".idx").name
        outside = (offsets < 0) | (offsets > reader.size - FRAME_BYTES) | (offsets % 4 != 0)
        self._fail(outside, lambda at: f"{index} points outside the file of {reader.size} bytes, or not at a multiple "
                   f"of 4: the file is cut, or it is the index of another file")
        self._fail(offsets == self.expected_end, lambda at: f"{index} gives this offset to two keys")
        if self.is_first and offsets[0]:
            raise record_error(reader.path, None, 0, f"not in {index}: its first record is at offset {offsets[0]}")
        words = reader.words
        at_word = offsets // 4
        self._fail(words[at_word] != MAGIC, lambda at: f"no record begins here: expected the magic {MAGIC:#010x}, "
                   f"found {words[at_word[at]]:#010x}; is {index} the index of another file?")
        frame = words[at_word + 1]
        self.cflag, self.length = frame >> LENGTH_BITS, (frame & (MAX_LENGTH - 1)).astype(np.int64)
        self._fail(self.cflag > FIRST, lambda at: f"begins with cflag {self.cflag[at]}; expected 0 or 1")
        stop = offsets + FRAME_BYTES + self.length
        end = stop + -stop % 4
        self.split: dict[int, tuple[int, bytes]] = {}  # of records in parts: bytes of the payload and its start
        for at in np.flatnonzero(self.cflag == FIRST).tolist():
            parts = reader.parts(int(offsets[at]), int(self.keys[at]))
            payload = reader.join(parts)
            self.split[at] = len(payload), bytes(payload[: IMAGE_HEADER.size + 8])
            stop[at] = end[at] = parts[-1].end  # its parts' padding has been checked
        self._fail(end > reader.size, lambda at: f"{end[at] - offsets[at]} bytes long, but the file of {reader.size} "
                   "bytes ends before: it is cut")
        padded = stop != end
        padding = words[end[padded] // 4 - 1] >> (8 * (stop[padded] % 4)).astype(np.uint32)
        wrong = np.zeros(len(offsets), bool)
        wrong[padded] = padding != 0
        self._fail(wrong, lambda at: f"padding {bytes(reader.map[stop[at] : end[at]]).hex()}; expected zeros")
        self._fail(end > self.expected_end, lambda at: f"ends at offset {end[at]}, after the next record in {index}, "
                   f"at {self.expected_end[at]}, begins: one of them is wrong")
        gap = end < self.expected_end
        if gap.any():
            begins = int(end[np.argmax(gap)])
            raise record_error(reader.path, None, begins, f"{index} lacks this record: its next one is at offset "
                               f"{self.expected_end[np.argmax(gap)]}")

    def _read_headers(self) -> None:
        """flag, first and second label, and bytes of the image; a payload too short for them is a DataError."""
        words, at_word = self.reader.words, self.offsets // 4 + FRAME_BYTES // 4
        payload = self.length.copy()
        for at, (length, _) in self.split.items():
            payload[at] = length
        self._fail(payload < IMAGE_HEADER.size, lambda at: f"a payload of {payload[at]} bytes; an image record's "
                   f"header takes {IMAGE_HEADER.size}")
        last = len(words) - 1
        self.flag = words[np.minimum(at_word, last)].astype(np.int64)
        single = words[np.minimum(at_word + 1, last)]
        first = words[np.minimum(at_word + 6, last)]
        second = words[np.minimum(at_word + 7, last)]
        self.label = np.where(self.flag > 0, first, single).view(np.float32)
        self.low = second.view(np.float32)
        for at, (_, start) in self.split.items():
            self.flag[at], single_label, *_ = IMAGE_HEADER.unpack_from(start)
            values = np.frombuffer(start, "<f4", (len(start) - IMAGE_HEADER.size) // 4, IMAGE_HEADER.size)
            self.label[at] = values[0] if self.flag[at] and len(values) else single_label
            self.low[at] = values[1] if len(values) > 1 else 0
        self.image_bytes = payload - IMAGE_HEADER.size - 4 * self.flag
        self._fail(self.image_bytes < 0, lambda at: f"flag {self.flag[at]} announces {4 * self.flag[at]} bytes of "
                   f"labels; the payload has {payload[at]} bytes in all")

    def _labels(self, num_classes: int | None, label_base: int) -> np.ndarray:
        """Labels int64 [n] of the images among the records, each whole, ≥ 0 and < the number of classes."""
        image = self.image_bytes > 0
        labels = self._whole(self.label, image, FLOAT32_WHOLE)
        if label_base:
            two = image & (self.flag >= 2)
            low = self._whole(self.low, two, label_base)
            labels = np.where(two, labels * label_base + low, labels)
        if num_classes is not None:
            classes = num_classes
            self._fail(image & (labels >= classes), lambda at: f"label {labels[at]}; expected less than the {classes} "
                       "classes that the file property states")
        return labels

    def _whole(self, values: np.ndarray, used: np.ndarray, limit: int) -> np.ndarray:
        """float32 [n] as int64 [n], where used: whole numbers in [0, limit)."""
        values = np.where(used, values, 0)
        right = (values >= 0) & (values < limit) & (values == np.floor(values))  # false for NaN
        self._fail(~right, lambda at: f"label {values[at]}; expected a whole number from 0 to {limit - 1}" + (
            f" (float32 skips whole numbers from {FLOAT32_WHOLE} on: write two floats and label_base)"
            if values[at] >= FLOAT32_WHOLE else ""))
        return values.astype(np.int64)
