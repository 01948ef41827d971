"""Walk one shard record by record, with all problems found: framing, content, labels, images, checksums, layout.

Proven by tests/tools/test_rec_builder.py.
"""

from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from recognition.data.dataset import Property
from recognition.data.image_file import ImageError, decode_rgb
from recognition.data.recordio import FLOAT32_WHOLE, MAGIC_BYTES, ImageHeader, RecordReader, unpack_record
from recognition.errors import DataError
from tools.records.findings import Findings, reason_of
from tools.records.in_order import in_order
from tools.records.index_check import check_index
from tools.records.sums import Sums

_UNSEEN, _IMAGE, _BARE, _DAMAGED = range(4)  # what stands where the index points
_SHOWN_OUTSIDE = 10  # entries outside the file that are told one by one


class ShardCheck:
    """The walk over one shard. The arrays have an entry for each entry of the index, in the order of offsets.

    `kind` is what the walk met there, `labels` int64 the label of an image, −1 where it is wrong. `good` lists
    (key, offset, label) of the images with which nothing is wrong, in the order of offsets; without an index the keys
    are the records' numbers.
    """

    def __init__(self, path: Path, stated: Property, findings: Findings) -> None:
        self.path, self.stated, self.findings = path, stated, findings
        self.index = path.with_suffix(".idx")
        self.good = array("q")
        self._damaged = False

    def run(self, pool: ThreadPoolExecutor) -> None:
        """Walk the records, then look at what no single record shows."""
        try:
            self.reader = RecordReader(self.path)
        except DataError as error:
            self.findings.problem(self.path, None, None, reason_of(self.path, error))
            return
        self.keys, self.offsets = check_index(self.index, self.findings)
        self.kind = np.full(len(self.keys), _UNSEEN, np.uint8)
        self.labels = np.full(len(self.keys), -1, np.int64)
        self.sums = Sums(self.path, self.reader.size, len(self.keys), self.findings)
        bar = tqdm(total=self.reader.size, unit="B", unit_scale=True, desc=self.path.name, disable=None)
        with bar:
            for (number, offset, _), (kind, label, faults) in in_order(pool, self._check_record, self._walk()):
                bar.update(offset - bar.n)
                self.sums.count(number, self._row(offset))
                self._note(offset, kind, label, faults)
        self.sums.finish(self._damaged)
        self._check_unseen()
        self._check_layout()

    def _check_unseen(self) -> None:
        """Entries of the index where the walk met nothing; of many outside the file, as after a cut, one is told."""
        outside = (self.offsets < 0) | (self.offsets >= self.reader.size)
        for row in np.flatnonzero((self.kind == _UNSEEN) & ~outside).tolist():
            self._problem(row, f"{self.index.name} points here, and no whole record begins here")
        rows = np.flatnonzero((self.kind == _UNSEEN) & outside).tolist()
        reason = f"{self.index.name} points outside the file of {self.reader.size} bytes"
        shown = rows if len(rows) <= _SHOWN_OUTSIDE else rows[:1]
        for row in shown:
            self._problem(row, reason if shown == rows else f"{reason}; {len(rows)} of its {len(self.keys)} entries do")

    def _note(self, offset: int, kind: int, label: int, faults: list[str]) -> None:
        row, number = self._row(offset), self.findings.records
        self.findings.records += 1
        self.findings.images += kind == _IMAGE
        for reason in faults:
            self.findings.problem(self.path, self._key(offset), offset, reason)
        if row is not None:
            self.kind[row], self.labels[row] = kind, label
        elif len(self.keys):
            self.findings.problem(self.path, None, offset, f"{self.index.name} lacks this record")
            return
        if kind == _IMAGE and not faults:
            self.good.extend((number if row is None else int(self.keys[row]), offset, label))

    def _problem(self, row: int, reason: str) -> None:
        self.findings.problem(self.path, int(self.keys[row]), int(self.offsets[row]), reason)

    def _row(self, offset: int) -> int | None:
        """Where in the arrays the record at an offset is; None when the index lacks it."""
        row = int(np.searchsorted(self.offsets, offset))
        return row if row < len(self.offsets) and self.offsets[row] == offset else None

    def _key(self, offset: int) -> int | None:
        row = self._row(offset)
        return None if row is None else int(self.keys[row])

    def _walk(self) -> Iterator[tuple[int | None, int, memoryview | bytes]]:
        """Every record with sound framing: its number, offset and payload; behind damage the number is None.

        Damage is noted, and the walk goes on where the next record can begin.
        """
        offset, number = 0, 0
        while offset < self.reader.size:
            try:
                parts = self.reader.parts(offset)
            except DataError as error:
                self.findings.problem(self.path, self._key(offset), offset, reason_of(self.path, error))
                offset, self._damaged = self._next_start(offset + 4), True
                continue
            yield None if self._damaged else number, offset, self.reader.join(parts)
            offset, number = parts[-1].end, number + 1

    def _next_start(self, offset: int) -> int:
        """The next multiple of 4 with the magic and the cflag of a beginning; a split payload leaves no false ones."""
        while (offset := self.reader.map.find(MAGIC_BYTES, offset)) >= 0:
            if offset % 4 == 0 and offset + 8 <= self.reader.size and self.reader.map[offset + 7] >> 5 in (0, 1):
                return offset
            offset += 1
        return self.reader.size

    def _check_record(self, record: tuple[int | None, int, memoryview | bytes]) -> tuple[int, int, list[str]]:
        """What a record is, its label (−1: none, or wrong), and all that is wrong with its content."""
        number, offset, payload = record
        changed = self.sums.fault(number, self._row(offset), payload)
        faults = [changed] if changed else []
        try:
            header, image = unpack_record(payload)
        except DataError as error:
            return _DAMAGED, -1, [*faults, str(error)]
        if len(image):
            label, fault = self._label(header)
            return _IMAGE, label, faults + [text for text in (fault, self._image_fault(image)) if text]
        if header.flag < 2:
            return _DAMAGED, -1, [*faults, "no image and no label range: neither image nor header"]
        return _BARE, -1, faults

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
