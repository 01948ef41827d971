"""All that is wrong with an index by itself; reading it for a run (recordio.read_index) stops at the first fault.

Proven by tests/tools/test_rec_builder.py.
"""

from pathlib import Path

import numpy as np

from recognition.data.recordio import read_index
from recognition.errors import DataError
from tools.records.findings import Findings, reason_of


def check_index(index: Path, findings: Findings) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets, int64 [n] each, in the order of offsets, each offset once; what is wrong is noted."""
    if not index.exists():
        findings.problem(index, None, None, "no such file")
        return np.empty(0, np.int64), np.empty(0, np.int64)
    try:
        keys, offsets = read_index(index)
    except DataError as error:
        keys, offsets = _read_malformed(index, findings, reason_of(index, error))
    if not len(keys):
        findings.problem(index, None, None, "lists no record")
    order = np.argsort(keys, kind="stable")
    for at in np.flatnonzero(np.diff(keys[order]) == 0).tolist():
        first, second = order[at], order[at + 1]
        findings.problem(index, int(keys[second]), int(offsets[second]),
                         f"key {keys[second]} also at offset {offsets[first]}")
    order = np.argsort(offsets, kind="stable")
    keys, offsets = keys[order], offsets[order]
    doubled = np.diff(offsets, prepend=-1) == 0
    for row in np.flatnonzero(doubled).tolist():
        findings.problem(index, int(keys[row]), int(offsets[row]),
                         f"offset {offsets[row]} also given to key {keys[row - 1]}")
    return keys[~doubled], offsets[~doubled]


def _read_malformed(index: Path, findings: Findings, first: str) -> tuple[np.ndarray, np.ndarray]:
    before, pairs = len(findings.problems), []
    for number, line in enumerate(index.read_bytes().split(b"\n"), 1):
        fields = line.rstrip(b"\r").split(b"\t")
        if len(fields) == 2 and all(0 < len(text) <= 18 and text.isdigit() for text in fields):
            pairs.append((int(fields[0]), int(fields[1])))
        elif line:
            findings.problem(index, None, None, f"line {number}: expected 'key<tab>offset', found {line[:60]!r}")
    if len(findings.problems) == before:  # what was wrong is an empty line
        findings.problem(index, None, None, first)
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
