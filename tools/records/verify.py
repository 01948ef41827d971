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
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recognition.data.dataset import Property, find_shards, open_dataset, read_property
from recognition.data.image_file import ImageError, decode_rgb
from recognition.data.recordio import FLOAT32_WHOLE, MAGIC_BYTES, ImageHeader, RecordReader, read_index, unpack_record
from recognition.errors import DataError
from tools.records.build import in_order


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
    """The walk over one shard. `keys` maps the offsets in the index to their keys."""

    def __init__(self, path: Path, stated: Property, findings: Findings) -> None:
        self.path, self.stated, self.findings = path, stated, findings
        self.index = path.with_suffix(".idx")
        self.labels: dict[int, int] = {}  # of images, by key
        self.bare: dict[int, tuple[int, ImageHeader]] = {}  # records without an image, by key: offset, header

    def run(self, pool: ThreadPoolExecutor) -> None:
        """Walk the records, then look at what no single record shows."""
        try:
            self.reader = RecordReader(self.path)
        except DataError as error:
            self.findings.problem(self.path, None, None, _reason(self.path, error))
            return
        self.keys = self._read_index()
        seen = []
        bar = tqdm(total=self.reader.size, unit="B", unit_scale=True, desc=self.path.name, disable=None)
        with bar:
            for (offset, _), faults in in_order(pool, self._check_record, self._walk()):
                seen.append(offset)
                bar.update(offset - bar.n)
                for reason in faults:
                    self.findings.problem(self.path, self.keys.get(offset), offset, reason)
        self.findings.records += len(seen)
        self.findings.images += len(self.labels)
        for offset in sorted(self.keys.keys() - set(seen)):
            if 0 <= offset < self.reader.size:
                reason = f"{self.index.name} points here, and no whole record begins here"
            else:
                reason = f"{self.index.name} points outside the file of {self.reader.size} bytes"
            self.findings.problem(self.path, self.keys[offset], offset, reason)
        self._check_layout()

    def _read_index(self) -> dict[int, int]:
        """Offset → key of the index; all its malformed lines and doubled keys or offsets are noted."""
        try:
            keys, offsets = read_index(self.index)
        except DataError as error:
            if not self.index.exists():
                self.findings.problem(self.index, None, None, "no such file")
                return {}
            keys, offsets = self._read_malformed_index(_reason(self.index, error))
        if not len(keys):
            self.findings.problem(self.index, None, None, "lists no record")
        table: dict[int, int] = {}
        by_key: dict[int, int] = {}
        for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True):
            if key in by_key:
                self.findings.problem(self.index, key, offset, f"key {key} also at offset {by_key[key]}")
            if offset in table:
                self.findings.problem(self.index, key, offset, f"offset {offset} also given to key {table[offset]}")
            by_key.setdefault(key, offset)
            table.setdefault(offset, key)
        return table

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
                parts = self.reader.parts(offset, self.keys.get(offset))
            except DataError as error:
                self.findings.problem(self.path, self.keys.get(offset), offset, _reason(self.path, error))
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

    def _check_record(self, record: tuple[int, memoryview | bytes]) -> list[str]:
        """What is wrong with one record's content; fills `labels` and `bare`."""
        offset, payload = record
        key = self.keys.get(offset)
        faults = [] if key is not None else [f"{self.index.name} lacks this record"]
        try:
            header, image = unpack_record(payload)
        except DataError as error:
            return [*faults, str(error)]
        where = -1 - offset if key is None else key
        if not len(image):
            self.bare[where] = offset, header
            return faults if header.flag >= 2 else [*faults, "no image and no label range: neither image nor header"]
        label, fault = self._label(header)
        self.labels[where] = label
        if fault:
            faults.append(fault)
        try:
            size = decode_rgb(image).shape[:2]
            if self.stated.height is not None and size != (self.stated.height, self.stated.width):
                faults.append(f"{size[1]}×{size[0]} pixels; property states {self.stated.width}×{self.stated.height}")
        except ImageError as error:
            faults.append(str(error))
        return faults

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
        if not self.bare:
            return
        has_header = 0 in self.bare
        last, before = max(self.labels, default=-1), len(self.findings.problems)
        for key, (offset, _) in sorted(self.bare.items()):
            if key and (not has_header or 0 <= key < last):
                self.findings.problem(self.path, key if key >= 0 else None, offset, "no image: a header or identity "
                                      "record where the layout has an image")
        if not has_header or len(self.findings.problems) > before:
            return
        stated = [int(value) for value in self.bare[0][1].labels[:2]]
        found = [last + 1, max(self.bare) + 1]
        if stated != found:
            reason = f"the header states identity keys {stated[0]} to {stated[1]}; they are {found[0]} to {found[1]}"
            self.findings.warning(self.path, 0, self.bare[0][0], reason)
        self._check_ranges()

    def _check_ranges(self) -> None:
        """Each identity record's range holds images of one label, and no other image has that label."""
        counts: dict[int, int] = {}
        for label in self.labels.values():
            counts[label] = counts.get(label, 0) + 1
        for key, (offset, header) in self.bare.items():
            if key == 0:
                continue
            values = [int(value) if np.isfinite(value) else -1 for value in header.labels[:4]]
            base = self.stated.label_base
            if base and len(values) == 4:
                values = [values[0] * base + values[1], values[2] * base + values[3]]
            start, end = values[:2]
            keys = range(max(start, 0), min(end, max(self.labels, default=0) + 1))
            labels = {self.labels.get(image) for image in keys}
            if len(labels) != 1 or None in labels or counts[next(iter(labels))] != end - start:  # type: ignore[index]
                reason = f"an identity record of keys {start} to {end}, which are not the images of one label"
                self.findings.warning(self.path, key, offset, reason)
