"""What the checks of a set find: problems and warnings, each of a file, a record and an offset where it is of one.

Proven by tests/tools/test_rec_builder.py.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recognition.errors import DataError


@dataclass
class Findings:
    """What was found in a set; a problem is {file, record, offset, reason}, record and offset None where not of one."""

    problems: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    records: int = 0
    images: int = 0
    compared: int = 0  # records whose CRC was compared with a sidecar's

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


def reason_of(path: Path, error: DataError) -> str:
    """An error's text behind its `FILE: record K @ offset N: `."""
    return re.sub(r"record \S+ @ offset \d+: ", "", str(error).removeprefix(f"{path}: "), count=1)
