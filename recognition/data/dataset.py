"""A training set on disk: RecordIO shards and their indices become samples with labels, checked before anything trains.

Samples are the records that carry an image, in the order of the shards and, within one, of their keys; sample numbers
run from 0. The header record and the identity records of the common face layout are never samples. Opening checks
every record's frame, header and label and the whole index (recognition/data/shard.py), or reads what such a check left
(recognition/data/sample_map.py); 12 bytes a sample are held, 16 where keys are not consecutive.
Several sets opened together are one: their samples and their labels follow each other, each set with labels of its own.
Proven by tests/recognition/data/test_dataset.py.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Literal

import numpy as np

from recognition.data.recordio import (
    FLOAT32_WHOLE,
    FRAME_BYTES,
    IMAGE_HEADER,
    LENGTH_BITS,
    MAGIC,
    MAX_LENGTH,
    RecordReader,
    unpack_record,
)
from recognition.data.sample_map import SampleMap, open_map
from recognition.errors import DataError, SettingsError

_FRAME_AND_LABEL = Struct("<IIIf")  # of a record: magic, length, flag, label
_LABELS = Struct("<ff")


@dataclass(frozen=True)
class Property:
    """What the file `property` beside the shards states; None is not stated, label_base 0 is one float a label."""

    num_classes: int | None = None
    height: int | None = None
    width: int | None = None
    num_images: int | None = None  # a hint like the header record: counts come from the index
    label_base: int = 0


class RecordDataset:
    """Samples of one or several shards. `labels` [num_images], int32 or int64, are whole, ≥ 0 and < `num_classes`."""

    def __init__(self, root: Path, readers: Sequence[RecordReader], samples: SampleMap, stated: Property) -> None:
        self.root = root
        self.stated = stated  # what the file `property` states
        self.num_images, self.num_classes = len(samples.labels), samples.num_classes
        self._samples, self._readers, self._first = samples, readers, samples.first
        if not self.num_images:
            raise DataError(f"{root}: no record carries an image")

    @property
    def labels(self) -> np.ndarray:
        """The labels of all samples; of a set that was checked before, a view of its file."""
        return self._samples.labels

    @property
    def paths(self) -> list[Path]:
        """The .rec files, in order."""
        return [reader.path for reader in self._readers]

    @property
    def parts(self) -> list[tuple[int, float]]:
        """Images and weight of each set: what a plan asks for."""
        return [(self.num_images, 1.0)]

    def __len__(self) -> int:
        return self.num_images

    def _shard(self, sample: int) -> int:
        if not 0 <= sample < self.num_images:
            raise IndexError(f"sample {sample}; expected 0 to {self.num_images - 1}")
        return int(np.searchsorted(self._first, sample, "right")) - 1 if len(self._readers) > 1 else 0

    def labels_of(self, sample: np.ndarray) -> np.ndarray:
        """The labels of samples int64 [b], int64 [b]."""
        return self.labels[sample].astype(np.int64)

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image, uint8 [bytes]: a read-only view of the memory map, a copy for a record that was split.

        The file may have changed since it was checked: a frame that no longer holds the record is a DataError, and so
        is a record of another label.
        """
        reader, offset = self._readers[self._shard(sample)], int(self._samples.offsets[sample])
        if offset + FRAME_BYTES + IMAGE_HEADER.size > reader.size:
            raise DataError(f"{self.where(sample)}: outside the file of {reader.size} bytes")
        magic, word, flag, label = _FRAME_AND_LABEL.unpack_from(reader.map, offset)
        labels_at = offset + FRAME_BYTES + IMAGE_HEADER.size
        start = labels_at + 4 * flag
        stop = offset + FRAME_BYTES + (word & MAX_LENGTH - 1)
        if magic == MAGIC and not word >> LENGTH_BITS and start < stop <= reader.size:
            self._check_label(sample, _LABELS.unpack_from(reader.map, labels_at) if flag else (label,), flag)
            return reader.bytes[start:stop]
        return self._in_parts(sample, reader, offset)

    def _in_parts(self, sample: int, reader: RecordReader, offset: int) -> np.ndarray:
        try:
            header, image = unpack_record(reader.read(offset, self.place(sample)[1]))
        except DataError as error:
            text = str(error)
            raise DataError(text if text.startswith(str(reader.path)) else f"{self.where(sample)}: {text}") from None
        if not len(image):
            raise DataError(f"{self.where(sample)}: no image: a header or identity record")
        self._check_label(sample, header.labels.tolist(), header.flag)
        return np.frombuffer(image, np.uint8)

    def _check_label(self, sample: int, values: Sequence[float], flag: int) -> None:
        """Compare the labels in a record with the one that was found when the set was checked."""
        high, base = values[0], self.stated.label_base
        found = high * base + values[1] if base and flag >= 2 else high
        if found != (expected := int(self._samples.labels[sample])):
            raise DataError(f"{self.where(sample)}: label {found:.0f}; it was {expected} when the set was checked: the "
                            "file has changed since")

    def place(self, sample: int) -> tuple[Path, int, int]:
        """Where a sample stands: its .rec file, its key in the index, its offset."""
        number = self._shard(sample)
        first_key, keys = self._samples.shards[number].first_key, self._samples.keys
        key = first_key + sample - int(self._first[number]) if keys is None and first_key is not None else (
            int(keys[sample]) if keys is not None else -1)
        return self._readers[number].path, key, int(self._samples.offsets[sample])

    def where(self, sample: int) -> str:
        """The sample in words, for errors and logs: `FILE: record K @ offset N`, K its key in the index."""
        path, key, offset = self.place(sample)
        return f"{path}: record {key} @ offset {offset}"

    def file_order(self) -> np.ndarray:
        """The samples in the order in which they stand in the files, int64 [num_images]: the fast way to read all."""
        spans = [slice(*span) for span in pairwise(self._first.tolist())]
        return np.concatenate([s.start + np.argsort(self._samples.offsets[s], kind="stable") for s in spans])

    def offsets_in_all_files(self) -> np.ndarray:
        """Where the images' records stand if the files follow each other, int64 [num_images], rising."""
        begin = np.cumsum([0, *(reader.size for reader in self._readers)])
        parts = zip(begin, pairwise(self._first.tolist()), strict=False)
        return np.concatenate([start + np.sort(self._samples.offsets[slice(*span)]) for start, span in parts])

    @property
    def is_one_set(self) -> bool:
        """Whether every sample is used once an epoch and labels are as they stand in the files."""
        return True

    def fingerprint(self) -> str:
        """A short hash of what the set is: its labels, its records' sizes and order, whatever folder it stands in."""
        return self._samples.fingerprint


class JoinedDataset(RecordDataset):
    """Several sets as one: samples and labels of the second follow those of the first; weights say how they mix."""

    def __init__(self, sets: Sequence[RecordDataset], weights: Sequence[float]) -> None:
        self.sets, self.weights = list(sets), list(weights)
        self.root, self.stated = sets[0].root, Property()
        self._first = np.cumsum([0, *(part.num_images for part in sets)])
        self._first_label = np.cumsum([0, *(part.num_classes for part in sets)])
        self.num_images, self.num_classes = int(self._first[-1]), int(self._first_label[-1])

    @property
    def labels(self) -> np.ndarray:
        """The labels of all samples, int64: put together anew at each call."""
        return np.concatenate([
            first + part.labels.astype(np.int64) for first, part in zip(self._first_label, self.sets, strict=False)
        ])

    @property
    def paths(self) -> list[Path]:
        """The .rec files, in order."""
        return [path for part in self.sets for path in part.paths]

    @property
    def parts(self) -> list[tuple[int, float]]:
        """Images and weight of each set: what a plan asks for."""
        return [(part.num_images, weight) for part, weight in zip(self.sets, self.weights, strict=True)]

    def _find(self, sample: int) -> tuple[RecordDataset, int]:
        if not 0 <= sample < self.num_images:
            raise IndexError(f"sample {sample}; expected 0 to {self.num_images - 1}")
        number = int(np.searchsorted(self._first, sample, "right")) - 1
        return self.sets[number], sample - int(self._first[number])

    def labels_of(self, sample: np.ndarray) -> np.ndarray:
        """The labels of samples int64 [b], int64 [b]."""
        number = np.searchsorted(self._first, sample, "right") - 1
        label = np.empty(len(sample), np.int64)
        for k in np.unique(number).tolist():
            rows = number == k
            label[rows] = self._first_label[k] + self.sets[k].labels_of(sample[rows] - self._first[k])
        return label

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image, uint8 [bytes], as each set gives it."""
        part, own = self._find(sample)
        return part.encoded(own)

    def place(self, sample: int) -> tuple[Path, int, int]:
        """Where a sample stands: its .rec file, its key in the index, its offset."""
        part, own = self._find(sample)
        return part.place(own)

    def file_order(self) -> np.ndarray:
        """The samples in the order in which they stand in the files, int64 [num_images]: the fast way to read all."""
        return np.concatenate([first + part.file_order() for first, part in zip(self._first, self.sets, strict=False)])

    @property
    def is_one_set(self) -> bool:
        """Whether every sample is used once an epoch and labels are as they stand in the files."""
        return False

    def fingerprint(self) -> str:
        """A short hash of the sets' own fingerprints, in order; of one set, its own."""
        own = " ".join(part.fingerprint() for part in self.sets)
        return own if len(self.sets) == 1 else hashlib.blake2b(own.encode(), digest_size=8).hexdigest()


Sidecar = Literal["use", "write", "ignore"]


def open_dataset(
    root: str | Path, weights: Sequence[float] = (), sidecar: Sidecar = "use", notes: list[str] | None = None
) -> RecordDataset:
    """Open and check a set: a folder with `train.rec`, a folder of several shards, one .rec file, or `A,B,…` of these.

    weights: of several sets, how often an epoch uses each sample of each; without any, 1.
    sidecar: what an earlier check left beside the set is believed if it is up to date ("use"), written where there is
    none ("write": a start of training, and what builds sets), or not looked at ("ignore": what verifies sets).
    notes: takes lines that a user should be told, of nothing that stops a run.
    Anything that is damaged or not what it claims to be is a DataError that names file, record and offset.
    """
    roots = split_roots(root)
    weights = list(weights) or [1.0] * len(roots)
    if len(weights) != len(roots):
        raise SettingsError(f"{len(weights)} weights for {len(roots)} sets: {', '.join(map(str, roots))}")
    if not all(0 < weight <= 1e6 for weight in weights):
        raise SettingsError(f"weights {', '.join(map(str, weights))}; expected numbers above 0")
    if len({path.resolve() for path in roots}) < len(roots):
        raise SettingsError(f"{root}: names a set twice, whose people would be two; a weight of 2 uses a set twice")
    _require_different_files(roots)
    opened = [_open_set(path, sidecar, [] if notes is None else notes) for path in roots]
    return opened[0] if len(opened) == 1 and weights == [1.0] else JoinedDataset(opened, weights)


def _require_different_files(roots: Sequence[Path]) -> None:
    """SettingsError where one .rec file is of two sets, as of a folder and of the file in it."""
    owner: dict[Path, Path] = {}
    for root in roots:
        for path in find_shards(root):
            other = owner.setdefault(path.resolve(), root)
            if other != root:
                raise SettingsError(f"{path}: in two sets, {other} and {root}: its people would be two; a weight of 2 "
                                    "uses a set twice")


def split_roots(root: str | Path) -> list[Path]:
    """The sets that a setting names: `A,B,…`, or one whose name holds a comma."""
    names = [name.strip() for name in str(root).split(",") if name.strip()]
    return [Path(root)] if Path(root).exists() or not names else [Path(name) for name in names]


def _open_set(root: Path, sidecar: Sidecar, notes: list[str]) -> RecordDataset:
    paths = find_shards(root)
    stated = read_property(paths[0].parent / "property")
    samples, why_in_memory = open_map(
        root, paths, stated.num_classes, stated.label_base, sidecar != "ignore", sidecar == "write"
    )
    dataset = RecordDataset(root, [RecordReader(path) for path in paths], samples, stated)
    if why_in_memory:
        notes.append(why_in_memory)
    if stated.num_images not in (None, dataset.num_images):
        notes.append(f"{paths[0].parent / 'property'}: states {stated.num_images} images; the set has "
                     f"{dataset.num_images}, which count")
    return dataset


def find_shards(root: Path) -> list[Path]:
    """The .rec files of a set in order; numbers in their names count as numbers."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: no such folder or file; expected a folder with train.rec or shards, or a .rec file")
    paths = sorted(root.glob("*.rec"), key=_natural)
    if not paths:
        raise DataError(f"{root}: no .rec file in this folder; tools/rec_builder.py build makes a set of pictures")
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
