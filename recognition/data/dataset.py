"""A training set on disk: RecordIO shards and their indices become samples with labels, checked before anything trains.

Samples are the records that carry an image, in the order of the shards and, within one, of their keys; sample numbers
run from 0. The header record and the identity records of the common face layout are never samples. Opening checks
every record's frame, header and label and the whole index (recognition/data/shard.py); what stays in memory is 16 bytes
a sample (offset and label), 24 where keys are not consecutive. Proven by tests/recognition/data/test_dataset.py.
"""

import hashlib
import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np

from recognition.data.recordio import (
    FLOAT32_WHOLE,
    FRAME_BYTES,
    IMAGE_HEADER,
    LENGTH_BITS,
    WHOLE,
    unpack_record,
)
from recognition.data.shard import Shard, open_shard
from recognition.errors import DataError

_FRAME_AND_FLAG = Struct("<III")


@dataclass(frozen=True)
class Property:
    """What the file `property` beside the shards states; None is not stated, label_base 0 is one float a label."""

    num_classes: int | None = None
    height: int | None = None
    width: int | None = None
    num_images: int | None = None  # a hint like the header record: counts come from the index
    label_base: int = 0


class RecordDataset:
    """Samples of one or several shards. `labels` int64 [num_images] are whole, ≥ 0 and < `num_classes`."""

    def __init__(self, root: Path, shards: list[Shard], stated: Property) -> None:
        self.root = root
        self.stated = stated  # what the file `property` states
        self._shards = shards
        self._first = np.cumsum([0, *(len(shard.labels) for shard in shards)]).tolist()
        self.labels = shards[0].labels if len(shards) == 1 else np.concatenate([shard.labels for shard in shards])
        self.labels.setflags(write=False)
        self._shards = [  # views of the one array, so that labels are held once
            shard._replace(labels=self.labels[start : start + len(shard.labels)])
            for shard, start in zip(shards, self._first, strict=False)
        ]
        self.num_images = len(self.labels)
        if not self.num_images:
            raise DataError(f"{root}: no record carries an image")
        self.num_classes = int(self.labels.max()) + 1 if stated.num_classes is None else stated.num_classes

    @property
    def paths(self) -> list[Path]:
        """The .rec files, in order."""
        return [shard.reader.path for shard in self._shards]

    def __len__(self) -> int:
        return self.num_images

    def _find(self, sample: int) -> tuple[Shard, int]:
        if not 0 <= sample < self.num_images:
            raise IndexError(f"sample {sample}; expected 0 to {self.num_images - 1}")
        number = bisect_right(self._first, sample) - 1
        return self._shards[number], sample - self._first[number]

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image, uint8 [bytes]: a read-only view of the memory map, a copy for a record that was split."""
        shard, row = self._find(sample)
        offset = int(shard.offsets[row])
        _, word, flag = _FRAME_AND_FLAG.unpack_from(shard.reader.map, offset)
        if word >> LENGTH_BITS == WHOLE:
            start = offset + FRAME_BYTES
            return shard.reader.bytes[start + IMAGE_HEADER.size + 4 * flag : start + word]
        _, image = unpack_record(shard.reader.read(offset))
        return np.frombuffer(image, np.uint8)

    def place(self, sample: int) -> tuple[Path, int, int]:
        """Where a sample stands: its .rec file, its key in the index, its offset."""
        shard, row = self._find(sample)
        return shard.reader.path, int(shard.keys[row]), int(shard.offsets[row])

    def where(self, sample: int) -> str:
        """The sample in words, for errors and logs: `FILE: record K @ offset N`, K its key in the index."""
        path, key, offset = self.place(sample)
        return f"{path}: record {key} @ offset {offset}"

    def file_order(self) -> np.ndarray:
        """The samples in the order in which they stand in the files, int64 [num_images]: the fast way to read all."""
        parts = zip(self._first, self._shards, strict=False)
        return np.concatenate([first + np.argsort(shard.offsets, kind="stable") for first, shard in parts])

    def fingerprint(self) -> str:
        """A short hash of what the set is: its labels, its records' sizes and order, whatever folder it stands in."""
        digest = hashlib.blake2b(f"{self.num_classes} {self.num_images}".encode(), digest_size=8)
        for shard in self._shards:
            digest.update(f" {shard.reader.size} {len(shard.offsets)} ".encode())
            digest.update(shard.offsets.data)
            digest.update(shard.labels.data)
        return digest.hexdigest()


def open_dataset(root: str | Path) -> RecordDataset:
    """Open and check a set: a folder with `train.rec`, a folder of several shards, or one .rec file.

    Anything that is damaged or not what it claims to be is a DataError that names file, record and offset.
    """
    root = Path(root)
    paths = find_shards(root)
    stated = read_property(paths[0].parent / "property")
    return RecordDataset(root, [open_shard(path, stated.num_classes, stated.label_base) for path in paths], stated)


def find_shards(root: Path) -> list[Path]:
    """The .rec files of a set in order; numbers in their names count as numbers."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: no such folder or file; expected a folder with train.rec or shards, or a .rec file")
    paths = sorted(root.glob("*.rec"), key=_natural)
    if not paths:
        raise DataError(f"{root}: no .rec file in this folder")
    if (whole := root / "train.rec") not in paths:
        return paths
    parts = [path.name for path in paths if re.fullmatch(r"train[_-]\d+\.rec", path.name)]
    if parts:
        raise DataError(f"{root}: both train.rec and shards ({', '.join(parts[:3])}): move away what is not of the set")
    return [whole]


def _natural(path: Path) -> list[str | int]:
    """A sort key in which train_2 comes before train_10."""
    return [int(text) if number % 2 else text for number, text in enumerate(re.split(r"([0-9]+)", path.name))]


def read_property(path: Path) -> Property:
    """Read the file `property`: `classes,height,width`, then perhaps the image count or `label_base=N` on own lines."""
    if not path.exists():
        return Property()
    stated: dict[str, int] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").split("\n"), 1):
        text = re.sub(r"\s", "", line)
        if match := re.fullmatch(r"(\d{1,18}),(\d{1,9}),(\d{1,9})", text):
            stated.update(zip(("num_classes", "height", "width"), map(int, match.groups()), strict=True))
        elif match := re.fullmatch(r"label_base=(\d{1,18})", text):
            stated["label_base"] = int(match[1])
            if not 1 <= stated["label_base"] <= FLOAT32_WHOLE:
                raise DataError(f"{path}: line {number}: label_base {match[1]}; expected 1 to {FLOAT32_WHOLE}")
        elif re.fullmatch(r"\d{1,18}", text):
            stated["num_images"] = int(text)
        elif text:
            expected = "'classes,height,width', the image count, or 'label_base=N'"
            raise DataError(f"{path}: line {number}: expected {expected}, found {line[:60]!r}")
    return Property(**stated)
