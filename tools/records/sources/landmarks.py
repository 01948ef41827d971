"""Five landmarks a picture from a CSV: path, x1, y1, … x5, y5; left eye, right eye, nose, corners of the mouth.

Other columns (a score) are not looked at. Paths are those of the source's pictures. Proven by
tests/tools/records/test_align_build.py.
"""

import csv
from array import array
from pathlib import Path

import numpy as np

from recognition.errors import DataError
from tools.records.sources.names import Names, first_repeated, rows_of

COLUMNS = ("path", *(f"{axis}{number}" for number in range(1, 6) for axis in "xy"))


def read_landmarks(path: Path, names: Names) -> np.ndarray:
    """Landmarks of the pictures `names`: float32 [n, 5, 2] in pixels, NaN for pictures that the file lacks.

    A DataError for another header, a number that is none, a path twice, and a file about none of the pictures.
    """
    known, points = Names(), array("f")
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            columns = [column.strip().lower() for column in next(reader, [])]
            if missing := [column for column in COLUMNS if column not in columns]:
                raise DataError(f"{path}: line 1: no column {', '.join(missing)}; expected {','.join(COLUMNS)}")
            at = [columns.index(column) for column in COLUMNS]
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(columns):
                    raise DataError(f"{path}: line {reader.line_num}: {len(fields)} fields; the header has "
                                    f"{len(columns)}")
                known.append(fields[at[0]].replace("\\", "/").removeprefix("./"))
                points.extend(_numbers(path, reader.line_num, [fields[column] for column in at[1:]]))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    if (repeated := first_repeated(known)) is not None:
        raise DataError(f"{path}: {repeated} stands there twice")
    rows = rows_of(names, known)
    if (rows < 0).all():
        example = f"; it has {known[0]!r}, the source {names[0]!r}" if len(known) else ""
        raise DataError(f"{path}: landmarks of none of the source's {len(names)} pictures{example}")
    landmarks = np.frombuffer(points, np.float32).reshape(-1, 5, 2)[rows]
    landmarks[rows < 0] = np.nan
    return landmarks


def _numbers(path: Path, line: int, fields: list[str]) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        raise DataError(f"{path}: line {line}: landmarks {fields}; expected 10 numbers") from None
    if not all(abs(number) < 1e6 for number in numbers):  # false for NaN
        raise DataError(f"{path}: line {line}: landmarks {fields}; expected pixels")
    return numbers
