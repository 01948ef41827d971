"""`verify --repair`: a copy of a set without the records with which anything is wrong.

Labels and classes stay as they are, so that a model trained on one fits the other; classes may be left without images.
What was left out stands in `left_out.tsv`: file, record, offset, reason. Proven by tests/tools/records/test_verify.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recognition.data.dataset import Property
from recognition.data.recordio import RecordReader, unpack_record
from recognition.errors import DataError
from tools.records.findings import Findings
from tools.records.names import identity_names
from tools.records.new_set import Selection, Writing, write_selection
from tools.records.output import new_folder, write_provenance
from tools.records.reorder import Sets
from tools.records.shard_check import ShardCheck


class GoodImages:
    """The images of a damaged set that are whole, in the order of shards and keys, read as from a set that opens."""

    def __init__(self, root: Path, checks: Sequence[ShardCheck]) -> None:
        self.root = root
        self.stated: Property = checks[0].stated
        tables = [np.frombuffer(check.good, np.int64).reshape(-1, 3) for check in checks]
        tables = [table[np.argsort(table[:, 0], kind="stable")] for table in tables]
        self._readers = [RecordReader(check.path) if len(table) else None
                         for check, table in zip(checks, tables, strict=True)]
        self.paths = [check.path for check in checks]
        self._first = np.cumsum([0, *map(len, tables)])
        self._keys, self._offsets, self.labels = np.concatenate(tables).T
        self.num_images = len(self.labels)

    def place(self, sample: int) -> tuple[Path, int, int]:
        """The sample's .rec file, key and offset."""
        shard = int(np.searchsorted(self._first, sample, "right")) - 1
        return self.paths[shard], int(self._keys[sample]), int(self._offsets[sample])

    def where(self, sample: int) -> str:
        """The sample in words."""
        path, key, offset = self.place(sample)
        return f"{path}: record {key} @ offset {offset}"

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image, uint8 [bytes]."""
        reader = self._readers[int(np.searchsorted(self._first, sample, "right")) - 1]
        assert reader is not None
        return np.frombuffer(unpack_record(reader.read(int(self._offsets[sample])))[1], np.uint8)

    def file_order(self) -> np.ndarray:
        """The samples in the order in which they stand in the files, int64 [n]."""
        shard = np.searchsorted(self._first, np.arange(self.num_images), "right")
        return np.lexsort((self._offsets, shard))


def repair(
    root: Path, checks: Sequence[ShardCheck], findings: Findings, out: Path, how: Writing, replace: bool = False
) -> dict[str, Any]:
    """Write the good images to `out` and say what that is; a DataError when there is none."""
    images = GoodImages(root, checks)
    if not images.num_images:
        raise DataError(f"{root}: no image in it is good; nothing was written")
    classes = images.stated.num_classes or int(images.labels.max()) + 1
    try:
        names = identity_names(images)
    except DataError:  # said by nobody before, and no reason to give up
        names = None
        findings.warning(root, None, None, "labels.tsv contradicts itself or the labels, and is left out of the copy")
    chosen = Selection(np.arange(images.num_images), images.labels, classes, names)
    with new_folder(out, replace, [root]) as folder:
        facts = write_selection(folder, Sets([images]), chosen, how)
        with open(folder / "left_out.tsv", "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for problem in findings.problems:
                if problem["offset"] is not None:
                    fields = (problem["file"], problem["record"], problem["offset"], problem["reason"])
                    file.write("\t".join("?" if field is None else str(field) for field in fields) + "\n")
        write_provenance(folder, "verify --repair", {"set": str(root), "problems": len(findings.problems)})
    return {"set": str(out), **facts}
