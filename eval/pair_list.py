"""Lists of pairs of faces by name, in LFW's form (`pairs.txt`).

Owns what a line means: `name n1 n2` is two pictures of one person, `name1 n1 name2 n2` of two; fields are separated by
tabs or, where there are none, by blanks. The first line may say `folds pairs`, so many of one person and then as many
of two in each fold, or only how many of each kind. Proven by tests/eval/test_verification_sets.py.
"""

from pathlib import Path
from typing import NamedTuple

from eval.safe_pickle import MAX_IMAGES
from recognition.errors import DataError

USUAL_FOLDS = 10


class NamedPair(NamedTuple):
    """Two faces by name and number, and the line of the list that says so."""

    first: tuple[str, int]
    second: tuple[str, int]
    line: int

    @property
    def same(self) -> bool:
        """Whether it is one person."""
        return self.first[0] == self.second[0]


def read_pair_list(path: Path) -> tuple[list[NamedPair], int]:
    """The pairs of a list in its order, and its folds (10 where it does not say).

    Raises:
        DataError: a malformed line, another number of pairs than stated, no pairs, or too many.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    pairs: list[NamedPair] = []
    stated, folds = None, USUAL_FOLDS
    for number, line in enumerate(lines, 1):
        fields = line.strip().split("\t") if "\t" in line else line.split()
        if not fields or fields == [""]:
            continue
        if number == 1 and len(fields) <= 2 and all(_is_number(field) for field in fields):
            stated = 2 * int(fields[-1])  # of each kind
            if len(fields) == 2:
                folds = int(fields[0])
                stated *= folds
        else:
            pairs.append(_pair(path, number, line, fields))
    if not pairs or stated not in (None, len(pairs)):
        told = "" if stated is None else f"; its first line states {stated}"
        raise DataError(f"{path}: {len(pairs)} pairs{told}")
    if len(pairs) > MAX_IMAGES // 2:
        raise DataError(f"{path}: {len(pairs)} pairs, more than {MAX_IMAGES // 2}")
    return pairs, folds


def _pair(path: Path, number: int, line: str, fields: list[str]) -> NamedPair:
    if len(fields) == 3 and _is_number(fields[1]) and _is_number(fields[2]):
        return NamedPair((fields[0], int(fields[1])), (fields[0], int(fields[2])), number)
    if len(fields) == 4 and _is_number(fields[1]) and _is_number(fields[3]):
        return NamedPair((fields[0], int(fields[1])), (fields[2], int(fields[3])), number)
    raise DataError(f"{path}: line {number}: expected 'name n n' or 'name n name n', found {line[:60]!r}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
