"""Sources that are lists of path and label: im2rec's .lst, the older aligned list, CSV and Parquet.

- .lst (im2rec): `index <tab> label <tab> … <tab> path`; of several labels the first counts;
- older .lst: `aligned <tab> path <tab> label [<tab> x y x y of a box [<tab> x1 … x5 y1 … y5 of landmarks]]`: pictures
  that are marked as not aligned (0) are aligned from the landmarks;
- CSV (`,`, `;` or tab, a header line) and Parquet: columns path, file, filename or image, and label, identity, class,
  subject, person or name.

Paths are below the folder, zip, tar or LMDB given as `--images`, or below the list's folder; none may leave it. Labels
that are 0, 1, … n−1 stay what they are, others are numbered in natural order. Every fault is a DataError that names
the line. Proven by tests/tools/records/test_lists.py.
"""

import csv
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import DataError
from tools.records.sources.folder import FolderReader, stamp_of_files
from tools.records.sources.names import Names, first_repeated, rows_of
from tools.records.sources.source import Members, Source, identity_order, stamp_of

LIST_SUFFIXES = (".csv", ".lst", ".parquet", ".tsv", ".txt")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path")
LABEL_COLUMNS = ("label", "identity", "class", "identity_id", "class_id", "subject", "person", "name")
_MAX_FIELDS = 64  # of a line of .lst
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class _Rows:
    """What a list says, row by row: path, label, landmarks where it has any."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.names, self.labels = Names(), array("q")
        self.number: dict[str, int] = {}
        self.landmarks = array("f")
        self.notes: list[str] = []
        self._above = os.path.normpath(os.path.abspath(root))

    def add(self, line: int, path: str, label: str, landmarks: list[float] | None = None) -> None:
        label = label.strip()
        if match := re.fullmatch(r"([0-9]+)\.0+", label):  # a whole number that went through a float
            label = match[1]
        if not label:
            raise self.error(line, "no label")
        if _NUMBER.fullmatch(label) and not re.fullmatch("[0-9]+", label):
            raise self.error(line, f"label {label}; expected a whole number ≥ 0 or a name")
        try:
            self.names.append(self._inside(line, path))
        except DataError as error:
            raise self.error(line, str(error)) from None
        self.labels.append(self.number.setdefault(label, len(self.number)))
        if landmarks is not None:
            self.landmarks.extend(landmarks)

    def _inside(self, line: int, path: str) -> str:
        """A path relative to the root; it may be written as an absolute one below it."""
        plain = path.strip().replace("\\", "/")
        if not plain or "\0" in plain:
            raise self.error(line, "no path")
        whole = os.path.normpath(os.path.join(self._above, plain))
        if not whole.startswith(self._above.rstrip("/") + "/"):
            raise self.error(line, f"the path {path[:200]!r} leaves {self.root}; --images ROOT gives another root")
        return whole[len(self._above.rstrip("/")) + 1 :]

    def error(self, line: int, reason: str) -> DataError:
        return DataError(f"{self.path}: line {line}: {reason}")


def open_list(path: Path, root: Path, members: Members | None) -> Source:
    """Read a list of any form; `members` are those of the archive at `root`, None where it is a folder."""
    rows = _Rows(path, root)
    try:
        if path.suffix.lower() == ".parquet":
            _read_parquet(path, rows)
        elif path.suffix.lower() in (".lst", ".txt"):
            _read_lst(path, rows)
        else:
            _read_csv(path, rows)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if not len(rows.names):
        raise DataError(f"{path}: lists no picture")
    if members is not None and (repeated := first_repeated(members.names)) is not None:
        raise DataError(f"{root}: member {repeated!r} stands there twice")
    order, identity, identities = identity_order(np.frombuffer(rows.labels, np.int64), list(rows.number))
    names = rows.names.take(order)
    landmarks = np.frombuffer(rows.landmarks, np.float32).reshape(-1, 5, 2)[order] if len(rows.landmarks) else None
    places = None
    if members is not None and members.places is not None:
        found = rows_of(names, members.names)
        places = members.places[found]
        places[found < 0] = -1
    reader = FolderReader(root) if members is None else members.reader
    stamp = f"{stamp_of(path)} {stamp_of_files(root, names) if members is None else stamp_of(root)}"
    return Source(path, "list", names, identity, identities, reader, places, landmarks, stamp=stamp, notes=rows.notes)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line := line.rstrip("\r\n"):
                yield number, line


def _read_lst(path: Path, rows: _Rows) -> None:
    older: bool | None = None
    extra = 0
    for line, text in _lines(path):
        fields = text.split("\t")
        if not 3 <= len(fields) <= _MAX_FIELDS:
            raise rows.error(line, f"expected 'index<tab>label<tab>path' or 'aligned<tab>path<tab>label', found "
                             f"{text[:60]!r}")
        if older is None:
            older = _is_older(rows, line, fields)
        if older:
            _add_older(rows, line, fields)
        else:
            extra += len(fields) > 3
            rows.add(line, fields[-1], _whole(rows, line, fields[1]))
    if extra:
        rows.notes.append(f"{extra} lines have several labels; the first counts")


def _is_older(rows: _Rows, line: int, fields: list[str]) -> bool:
    """Which form a list has, by its first line: in the older one the second field is no number."""
    if _NUMBER.fullmatch(fields[1].strip()):
        return False
    if fields[0].strip() in ("0", "1") and _NUMBER.fullmatch(fields[2].strip()):
        return True
    raise rows.error(line, f"neither 'index<tab>label<tab>path' nor 'aligned<tab>path<tab>label': {fields[:4]}")


def _add_older(rows: _Rows, line: int, fields: list[str]) -> None:
    if fields[0].strip() not in ("0", "1") or len(fields) not in (3, 7, 17):
        raise rows.error(line, "expected 0 or 1, path, label, then perhaps 4 numbers of a box and 10 of landmarks, "
                         f"found {len(fields)} fields")
    points = [np.nan] * 10
    if fields[0].strip() == "0":
        if len(fields) != 17:
            raise rows.error(line, "a picture that is not aligned (0), without landmarks: give path and label in a CSV "
                             "and build with --detect MODEL")
        try:
            values = [float(field) for field in fields[7:]]
        except ValueError:
            raise rows.error(line, f"landmarks {fields[7:]}; expected 10 numbers") from None
        points = [value for pair in zip(values[:5], values[5:], strict=True) for value in pair]  # x1 … x5 y1 … y5
        if not np.isfinite(np.array(points, np.float32)).all():
            raise rows.error(line, "landmarks that are not finite")
    rows.add(line, fields[1], _whole(rows, line, fields[2]), points)


def _whole(rows: _Rows, line: int, text: str) -> str:
    """The text of a whole label ≥ 0, which im2rec may have written as 3.000000."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and value.is_integer() and value < 2**53):
        raise rows.error(line, f"label {text[:60]!r}; expected a whole number ≥ 0")
    return str(int(value))


def _read_csv(path: Path, rows: _Rows) -> None:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = file.readline(1 << 16)
        delimiter = max(",;\t", key=head.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        try:
            columns = next(reader, [])
            at, label_at = (_column(path, columns, known) for known in (PATH_COLUMNS, LABEL_COLUMNS))
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(columns):
                    raise rows.error(reader.line_num, f"{len(fields)} fields; the header has {len(columns)}")
                rows.add(reader.line_num, fields[at], fields[label_at])
        except csv.Error as error:
            raise rows.error(reader.line_num, str(error)) from error


def _column(path: Path, columns: list[str], known: tuple[str, ...]) -> int:
    plain = [column.strip().lower() for column in columns]
    found = [name for name in known if name in plain]
    if not found:
        raise DataError(f"{path}: line 1: no column {', '.join(known[:-1])} or {known[-1]} in the header "
                        f"({', '.join(columns)[:200]!r})")
    if plain.count(found[0]) > 1:
        raise DataError(f"{path}: line 1: column {found[0]} stands there twice")
    return plain.index(found[0])


def _read_parquet(path: Path, rows: _Rows) -> None:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs the package pyarrow (see requirements.txt)") from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            wanted = [columns[_column(path, columns, known)] for known in (PATH_COLUMNS, LABEL_COLUMNS)]
            _check_types(path, file.schema_arrow, wanted)
            line = 0
            for batch in file.iter_batches(columns=wanted):
                paths, labels = (batch.column(name).to_pylist() for name in wanted)
                for one, label in zip(paths, labels, strict=True):
                    line += 1
                    if one is None or label is None or label != label:  # NaN
                        raise DataError(f"{path}: row {line}: no {wanted[one is not None]}")
                    rows.add(line, one, str(label))
    except (pyarrow.ArrowException, UnicodeError) as error:
        raise DataError(f"{path}: not a Parquet file, or damaged: {str(error).splitlines()[0][:200]}") from error


def _check_types(path: Path, schema: Any, wanted: list[str]) -> None:
    from pyarrow import types

    path_type, label_type = (schema.field(name).type for name in wanted)
    if not (types.is_string(path_type) or types.is_large_string(path_type)):
        raise DataError(f"{path}: column {wanted[0]} is {path_type}; expected text, the paths of pictures (pictures "
                        "inside a Parquet file are not read: write them to files or a zip)")
    if not any(check(label_type) for check in (types.is_string, types.is_large_string, types.is_integer,
                                               types.is_floating)):
        raise DataError(f"{path}: column {wanted[1]} is {label_type}; expected text or numbers")
