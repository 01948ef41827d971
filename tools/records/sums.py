"""The comparison of a shard's records with its CRC sidecar, while the shard is being walked.

A sidecar states the sums of all records in the order of the file. Which of them is a record's follows from the index,
if that has an entry for each, and otherwise from counting, as far as no damage has been met.
Proven by tests/tools/records/test_verify.py.
"""

import zlib
from pathlib import Path

import numpy as np

from recognition.data.checksums import crc_path, read_checksums
from recognition.errors import DataError
from tools.records.findings import Findings, reason_of


class Sums:
    """The sidecar of one shard. Without a sidecar nothing is compared, which is no fault."""

    def __init__(self, rec: Path, size: int, indexed: int, findings: Findings) -> None:
        self.path, self.findings = crc_path(rec), findings
        self._stated: np.ndarray | None = None
        self._walked = self._compared = 0
        if not self.path.exists():
            return
        try:
            sums = read_checksums(self.path)
        except DataError as error:
            findings.problem(self.path, None, None, reason_of(self.path, error))
            return
        if sums.size != size:
            findings.problem(self.path, None, None, f"is of a {rec.name} of {sums.size} bytes; this one has {size}")
        self._stated = sums.records
        self._by_index = len(sums.records) == indexed

    def _place(self, number: int | None, row: int | None) -> int | None:
        if self._stated is None:
            return None
        place = row if self._by_index else number
        return place if place is not None and place < len(self._stated) else None

    def fault(self, number: int | None, row: int | None, payload: memoryview | bytes) -> str:
        """What is wrong with the payload of the record of this number in the file and this row in the index."""
        if (place := self._place(number, row)) is None:
            return ""
        assert self._stated is not None
        found, stated = zlib.crc32(payload), int(self._stated[place])
        if found == stated:
            return ""
        return f"CRC {found:08x}, but {self.path.name} states {stated:08x}: bits have changed"

    def count(self, number: int | None, row: int | None) -> None:
        """Count a record that was walked; `fault` runs in threads and cannot."""
        self._walked += 1
        self._compared += self._place(number, row) is not None

    def finish(self, damaged: bool) -> None:
        """Note what the comparison could not see. `damaged`: whether records were lost on the walk."""
        if self._stated is None:
            return
        self.findings.compared += self._compared
        if not damaged and self._walked != len(self._stated):
            reason = f"states {len(self._stated)} sums; the file has {self._walked} records"
            self.findings.problem(self.path, None, None, reason)
        elif self._walked != self._compared:
            reason = f"{self._walked - self._compared} records behind damage not compared, as the index is wrong too"
            self.findings.warning(self.path, None, None, reason)
