"""Verify a RecordIO set: framing, index, labels and every image, with all problems found and not only the first.

Opening a set (recognition/data/dataset.py) stops at its first fault; this walks every shard record by record, finds its
way again after damaged framing, decodes every image, and in the end opens the set as a run would. Problems are what a
run would refuse or stumble over; warnings are hints of the layout (header record, identity records, image count in
`property`) that disagree with what is there and mislead other readers. Proven by tests/tools/test_rec_builder.py.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recognition.data.dataset import Property, find_shards, open_dataset, read_property
from recognition.data.image_file import ImageError, decode_rgb
from recognition.data.recordio import FLOAT32_WHOLE, MAGIC_BYTES, ImageHeader, RecordReader, read_index, unpack_record
from recognition.errors import DataError
from tools.records.build import in_order

_UNSEEN, _IMAGE, _BARE, _DAMAGED = range(4)  # what stands where the index points


@dataclass
class Findings:
    """What was found in a set; a problem is {file, record, offset, reason}, record and offset None where not of one."""

    problems: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    records: int = 0
    images: int = 0

    def problem(self, path: Path, record: int | None, offset: int | None, reason: str) -> None:
        """Note what a run would refuse or stumble over."""
        self.problems.append({"file": str(path), "record": record, "offset": offset, "reason": reason})

    def warning(self, path: Path, record: int | None, offset: int | None, reason: str) -> None:
        """Note what only misleads other readers."""
        self.warnings.append({"file": str(path), "record": record, "offset": offset, "reason": reason})


def sentence(fault: dict[str, Any]) -> str:
    """A problem or warning as the line that every error about data has."""
    if fault["offset"] is None:
        return f"{fault['file']}: {fault['reason']}"
    record = "?" if fault["record"] is None else fault["record"]
    return f"{fault['file']}: record {record} @ offset {fault['offset']}: {fault['reason']}"


def verify(root: Path, threads: int | None = None) -> Findings:
    """Check all of a set, decoding every image on all cores or `threads` of them."""
    findings = Findings()
    paths = find_shards(root)
    try:
        stated = read_property(paths[0].parent / "property")
    except DataError as error:
        findings.problem(paths[0].parent / "property", None, None, _reason(paths[0].parent / "property", error))
        stated = Property()
    for path in paths:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            _ShardCheck(path, stated, findings).run(pool)
    if stated.num_images is not None and stated.num_images != findings.images:
        reason = f"states {stated.num_images} images; the shards have {findings.images}"
        findings.warning(paths[0].parent / "property", None, None, reason)
    if not findings.problems:
        try:
            open_dataset(root)
        except DataError as error:
            findings.problem(root, None, None, str(error))
    return findings


def _reason(path: Path, error: DataError) -> str:
    """An error's text behind its `FILE: record K @ offset N: `."""
    return re.sub(r"record \S+ @ offset \d+: ", "", str(error).removeprefix(f"{path}: "), count=1)


class _ShardCheck:
    """The walk over one shard. The arrays have an entry for each entry of the index, in the order of offsets.

    `kind` is what the walk met there, `labels` int64 the label of an image, −1 where it is wrong.
    """

    def __init__(self, path: Path, stated: Property, findings: Findings) -> None:
        self.path, self.stated, self.findings = path, stated, findings
        self.index = path.with_suffix(".idx")

    def run(self, pool: ThreadPoolExecutor) -> None:
        """Walk the records, then look at what no single record shows."""
        try:
            self.reader = RecordReader(self.path)
        except DataError as error:
            self.findings.problem(self.path, None, None, _reason(self.path, error))
            return
        self.keys, self.offsets = self._read_index()
        self.kind = np.full(len(self.keys), _UNSEEN, np.uint8)
        self.labels = np.full(len(self.keys), -1, np.int64)
        bar = tqdm(total=self.reader.size, unit="B", unit_scale=True, desc=self.path.name, disable=None)
        with bar:
            for (offset, _), (is_image, faults) in in_order(pool, self._check_record, self._walk()):
                bar.update(offset - bar.n)
                self.findings.records += 1
                self.findings.images += is_image
                for reason in faults:
                    self.findings.problem(self.path, self._key(offset), offset, reason)
        for row in np.flatnonzero(self.kind == _UNSEEN).tolist():
            if 0 <= self.offsets[row] < self.reader.size:
                reason = f"{self.index.name} points here, and no whole record begins here"
            else:
                reason = f"{self.index.name} points outside the file of {self.reader.size} bytes"
            self._problem(row, reason)
        self._check_layout()

    def _problem(self, row: int, reason: str) -> None:
        self.findings.problem(self.path, int(self.keys[row]), int(self.offsets[row]), reason)

    def _row(self, offset: int) -> int | None:
        """Where in the arrays the record at an offset is; None when the index lacks it."""
        row = int(np.searchsorted(self.offsets, offset))
        return row if row < len(self.offsets) and self.offsets[row] == offset else None

    def _key(self, offset: int) -> int | None:
        row = self._row(offset)
        return None if row is None else int(self.keys[row])

    def _read_index(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and offsets in the order of offsets; malformed lines and doubled keys and offsets are noted."""
        if not self.index.exists():
            self.findings.problem(self.index, None, None, "no such file")
            return np.empty(0, np.int64), np.empty(0, np.int64)
        try:
            keys, offsets = read_index(self.index)
        except DataError as error:
            keys, offsets = self._read_malformed_index(_reason(self.index, error))
        if not len(keys):
            self.findings.problem(self.index, None, None, "lists no record")
        order = np.argsort(keys, kind="stable")
        for at in np.flatnonzero(np.diff(keys[order]) == 0).tolist():
            first, second = order[at], order[at + 1]
            self.findings.problem(self.index, int(keys[second]), int(offsets[second]),
                                  f"key {keys[second]} also at offset {offsets[first]}")
        order = np.argsort(offsets, kind="stable")
        keys, offsets = keys[order], offsets[order]
        doubled = np.diff(offsets, prepend=-1) == 0
        for row in np.flatnonzero(doubled).tolist():
            self.findings.problem(self.index, int(keys[row]), int(offsets[row]),
                                  f"offset {offsets[row]} also given to key {keys[row - 1]}")
        return keys[~doubled], offsets[~doubled]

    def _read_malformed_index(self, first: str) -> tuple[np.ndarray, np.ndarray]:
        before, pairs = len(self.findings.problems), []
        for number, line in enumerate(self.index.read_bytes().split(b"\n"), 1):
            fields = line.rstrip(b"\r").split(b"\t")
            if len(fields) == 2 and all(0 < len(text) <= 18 and text.isdigit() for text in fields):
                pairs.append((int(fields[0]), int(fields[1])))
            elif line:
                reason = f"line {number}: expected 'key<tab>offset', found {line[:60]!r}"
                self.findings.problem(self.index, None, None, reason)
        if len(self.findings.problems) == before:  # what was wrong is an empty line
            self.findings.problem(self.index, None, None, first)
        table = np.array(pairs, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _walk(self) -> Iterator[tuple[int, memoryview | bytes]]:
        """Every record with sound framing; damage is noted, and the walk goes on where the next record can begin."""
        offset = 0
        while offset < self.reader.size:
            try:
                parts = self.reader.parts(offset)
            except DataError as error:
                self.findings.problem(self.path, self._key(offset), offset, _reason(self.path, error))
                offset = self._next_start(offset + 4)
                continue
            yield offset, self.reader.join(parts)
            offset = parts[-1].end

    def _next_start(self, offset: int) -> int:
        """The next multiple of 4 with the magic and the cflag of a beginning; a split payload leaves no false ones."""
        while (offset := self.reader.map.find(MAGIC_BYTES, offset)) >= 0:
            if offset % 4 == 0 and offset + 8 <= self.reader.size and self.reader.map[offset + 7] >> 5 in (0, 1):
                return offset
            offset += 1
        return self.reader.size

    def _check_record(self, record: tuple[int, memoryview | bytes]) -> tuple[bool, list[str]]:
        """Whether a record carries an image, and all that is wrong with its content."""
        offset, payload = record
        row = self._row(offset)
        faults = [] if row is not None else [f"{self.index.name} lacks this record"]
        try:
            header, image = unpack_record(payload)
        except DataError as error:
            kind, label = _DAMAGED, -1
            faults.append(str(error))
        else:
            kind, label = (_IMAGE if len(image) else _BARE), -1
            if kind == _IMAGE:
                label, fault = self._label(header)
                faults += [text for text in (fault, self._image_fault(image)) if text]
            elif header.flag < 2:
                kind = _DAMAGED
                faults.append("no image and no label range: neither image nor header")
        if row is not None:
            self.kind[row], self.labels[row] = kind, label
        return kind == _IMAGE, faults

    def _image_fault(self, image: memoryview) -> str:
        try:
            size = decode_rgb(image).shape[:2]
        except ImageError as error:
            return str(error)
        if self.stated.height is None or size == (self.stated.height, self.stated.width):
            return ""
        return f"{size[1]}×{size[0]} pixels; property states {self.stated.width}×{self.stated.height}"

    def _label(self, header: ImageHeader) -> tuple[int, str]:
        """The label of an image, −1 where it is wrong, and what is wrong with it."""
        base = self.stated.label_base if header.flag >= 2 else 0
        values = [float(value) for value in header.labels[: 2 if base else 1]]
        for value, limit in zip(values, (FLOAT32_WHOLE, base), strict=False):
            if not (0 <= value < limit and value == int(value)):  # NaN and infinity fail the first
                return -1, f"label {value}; expected a whole number from 0 to {limit - 1}"
        label = int(values[0]) * base + int(values[1]) if base else int(values[0])
        if self.stated.num_classes is not None and label >= self.stated.num_classes:
            return -1, f"label {label}; expected less than the {self.stated.num_classes} classes of the file property"
        return label, ""

    def _check_layout(self) -> None:
        """Where records without an image stand, and whether what they state is true."""
        bare = np.flatnonzero(self.kind == _BARE)
        if not len(bare):
            return
        has_header = bool((self.keys[bare] == 0).any())
        last = int(self.keys[self.kind == _IMAGE].max(initial=-1))
        misplaced = bare[(self.keys[bare] > 0) & (self.keys[bare] < last)] if has_header else bare
        for row in misplaced.tolist():
            self._problem(row, "no image: a header or identity record where the layout has an image")
        if not has_header or len(misplaced):
            return
        for row in bare.tolist():
            header, _ = unpack_record(self.reader.read(int(self.offsets[row])))
            stated = [int(value) if np.isfinite(value) else -1 for value in header.labels]
            reason = self._range_fault(stated) if self.keys[row] else ""
            first, end = last + 1, int(self.keys[bare].max()) + 1
            if not self.keys[row] and stated[:2] != [first, end]:
                reason = f"the header states identity keys {stated[0]} to {stated[1]}; they are {first} to {end}"
            if reason:
                self.findings.warning(self.path, int(self.keys[row]), int(self.offsets[row]), reason)

    def _range_fault(self, stated: list[int]) -> str:
        """An identity record's range must hold images of one label, all of them, and nothing else."""
        base = self.stated.label_base
        if base and len(stated) == 4:
            stated = [stated[0] * base + stated[1], stated[2] * base + stated[3]]
        start, end = stated[:2]
        low, high = np.searchsorted(self._image_keys, [start, end])
        labels = self._image_labels[low:high]
        if 0 < end - start == len(labels) and (labels == labels[0]).all() and self._counts[labels[0]] == len(labels):
            return ""
        return f"an identity record of keys {start} to {end}, which are not the images of one label"

    @cached_property
    def _image_order(self) -> np.ndarray:
        rows = np.flatnonzero(self.kind == _IMAGE)
        return rows[np.argsort(self.keys[rows], kind="stable")]

    @cached_property
    def _image_keys(self) -> np.ndarray:
        return self.keys[self._image_order]

    @cached_property
    def _image_labels(self) -> np.ndarray:
        return self.labels[self._image_order]

    @cached_property
    def _counts(self) -> dict[int, int]:
        labels, counts = np.unique(self._image_labels, return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))
