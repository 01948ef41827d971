"""Pictures in an LMDB, in the layouts that are in use; pickles in it are parsed, never run.

- key = path IDENTITY/FILE, value = encoded picture;
- keys 0, 1, … (or any), value = pickle of the tuple (encoded picture, label), with `__len__` and `__keys__` beside
  them: what the many folder2lmdb scripts write, as long as it is bytes and a whole number;
- keys image-000000001 and label-000000001 with `num-samples`, a label being text;
- any keys, value = encoded picture: labels come from a list file, the LMDB being its `--images`.

Values of other kinds (Caffe's Datum, pyarrow.serialize, msgpack) are refused. The database is mapped into memory by
liblmdb, which trusts it: open only files whose origin you trust as much as their pictures'. A file shorter than it
says is refused. Proven by tests/tools/records/test_lmdb.py.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recognition.data.image_file import ImageError, image_size
from recognition.errors import DataError
from tools.records.sources.names import Names
from tools.records.sources.source import Members, Source, by_folder, identity_order, stamp_of

_ABOUT = (b"__len__", b"__keys__", b"num-samples")  # keys of no picture


class LmdbReader:
    """Reads values by key; of a pickled (picture, label) the picture."""

    def __init__(self, path: Path, pickled: bool = False) -> None:
        self.path, self.pickled = path, pickled

    @cached_property
    def _transaction(self) -> Any:
        return open_environment(self.path).begin(buffers=True)

    def read(self, name: str, place: tuple[int, ...] | None) -> bytes:
        """The picture under a key."""
        value = self._transaction.get(name.encode("utf-8", "surrogateescape"))
        if value is None:
            raise FileNotFoundError(2, "no such key")
        if self.pickled:
            start, stop, _ = picture_and_label(value)
            return bytes(value[start:stop])
        return bytes(value)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "pickled": self.pickled}


def is_lmdb(path: Path) -> bool:
    """Whether a path looks like an LMDB: a folder with data.mdb, or a file .lmdb or .mdb."""
    return (path / "data.mdb").is_file() or (path.is_file() and path.suffix.lower() in (".lmdb", ".mdb"))


def open_lmdb(path: Path) -> Source:
    """Find pictures and labels of an LMDB in one of the layouts above."""
    with _values(path) as values:
        first = next(((key, value) for key, value in values if key not in _ABOUT), None)
        if first is None:
            raise DataError(f"{path}: an LMDB without pictures")
        layout = _layout(path, *first)
    return {"path": _by_path, "pickle": _by_pickle, "numbered": _by_number}[layout](path)


def lmdb_members(path: Path) -> Members:
    """All keys of an LMDB of encoded pictures, for a list file to choose from."""
    with _values(path) as values:
        return Members(Names(_text(path, key) for key, _ in values if key not in _ABOUT), None, LmdbReader(path), [])


def _layout(path: Path, key: bytes, value: memoryview) -> str:
    head = bytes(value[:8])
    if re.fullmatch(rb"(image|label)-\d+", key):
        return "numbered"
    if head[:1] == b"\x80":
        return "pickle"
    try:
        image_size(value)
    except ImageError:
        raise DataError(
            f"{path}: key {key[:60]!r}: neither an encoded picture nor a pickle of (picture, label): begins "
            f"{head.hex()}. Caffe's Datum, pyarrow.serialize and msgpack are not read; write files or a list") from None
    if b"/" not in key:
        raise DataError(f"{path}: key {key[:60]!r} has no folder, so no label; give a list of key and label as the "
                        "source, and this LMDB as its --images")
    return "path"


def _by_path(path: Path) -> Source:
    return by_folder(path, "lmdb", lmdb_members(path), _stamp(path))


def _by_pickle(path: Path) -> Source:
    names, labels = Names(), []
    with _values(path) as values:
        for key, value in values:
            if key in _ABOUT:
                continue
            names.append(_text(path, key))
            try:
                labels.append(picture_and_label(value)[2])
            except ValueError as error:
                raise DataError(f"{path}: key {key[:60]!r}: {error}") from None
    return _labelled(path, names, [str(label) for label in labels], LmdbReader(path, pickled=True))


def _by_number(path: Path) -> Source:
    names, labels = Names(), []
    with _values(path) as values:
        told = {key[6:]: bytes(value) for key, value in values if key.startswith(b"label-")}
    with _values(path) as values:
        for key, _ in values:
            if not key.startswith(b"image-"):
                continue
            if key[6:] not in told:
                raise DataError(f"{path}: key {key[:60]!r} has no label-{_text(path, key)[6:]}")
            names.append(_text(path, key))
            labels.append(_text(path, told[key[6:]]).strip())
    return _labelled(path, names, labels, LmdbReader(path))


def _labelled(path: Path, names: Names, labels: list[str], reader: LmdbReader) -> Source:
    """A source of pictures whose labels stand in the database; keys that are numbers count as numbers."""
    if not len(names):
        raise DataError(f"{path}: an LMDB without pictures")
    number: dict[str, int] = {}
    rows = np.array([number.setdefault(label, len(number)) for label in labels])
    digits = [int(match[0]) if (match := re.search(r"\d{1,18}$", name)) else 0 for name in names]
    by_key = np.argsort(digits, kind="stable")
    order, identity, identities = identity_order(rows[by_key], list(number))
    return Source(path, "lmdb", names.take(by_key[order]), identity, identities, reader, stamp=_stamp(path))


def open_environment(path: Path) -> Any:
    """An LMDB opened for reading, without locks; a DataError for what is none, or shorter than it says."""
    try:
        import lmdb
    except ImportError as error:
        raise DataError(f"{path}: reading LMDB needs the package lmdb (see requirements.txt)") from error
    try:
        environment = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
        pages, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
    except (lmdb.Error, OSError, ValueError) as error:
        raise DataError(f"{path}: not an LMDB, or damaged: {error}") from error
    if _data_file(path).stat().st_size < pages * size:
        environment.close()  # its pages would be read beyond the file's end, which kills the process
        raise DataError(f"{path}: {_data_file(path).stat().st_size} bytes, but it says {pages * size}: it is cut")
    return environment


@contextmanager
def _values(path: Path) -> Iterator[Iterator[tuple[bytes, memoryview]]]:
    """All (key, value) in the order of keys; values are views that hold only inside the block."""
    import lmdb

    environment = open_environment(path)
    try:
        with environment.begin(buffers=True) as transaction:
            yield ((bytes(key), value) for key, value in transaction.cursor())
    except lmdb.Error as error:
        raise DataError(f"{path}: damaged: {error}") from error
    finally:
        environment.close()


def _data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def _stamp(path: Path) -> str:
    return stamp_of(_data_file(path))


def _text(path: Path, key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


_SIZED = {  # opcodes of bytes (and of Python 2's strings): how many bytes follow
    b"C": struct.Struct("<B"), b"B": struct.Struct("<I"), b"\x8e": struct.Struct("<Q"),
    b"U": struct.Struct("<B"), b"T": struct.Struct("<i"),
}
_NUMBERS = {b"K": struct.Struct("<B"), b"M": struct.Struct("<H"), b"J": struct.Struct("<i")}
_PASSED = {b"\x80": 1, b"\x95": 8, b"\x94": 0, b"q": 1, b"r": 4, b"(": 0}  # protocol, frame, memo, mark: their bytes
_MAX_OPCODES = 20


def picture_and_label(value: memoryview | bytes) -> tuple[int, int, int]:
    """Where the picture of a pickled (bytes, whole number) stands in it, and the number: (start, stop, label).

    Reads the dozen opcodes that such a tuple consists of and none other, so nothing in it can be run or can ask for
    memory; only the pages at both ends are touched. ValueError says what else stands there.
    """
    at, picture, label = 0, None, None
    for _ in range(_MAX_OPCODES):
        opcode = bytes(value[at : at + 1])
        at += 1
        try:
            if opcode in _SIZED and picture is None:
                size = _SIZED[opcode].unpack_from(value, at)[0]
                at += _SIZED[opcode].size
                picture = at, at + size
                at += size
                if size < 0 or at > len(value):
                    raise ValueError("a pickle that is cut inside its picture")
            elif opcode in _NUMBERS and picture is not None and label is None:
                label = _NUMBERS[opcode].unpack_from(value, at)[0]
                at += _NUMBERS[opcode].size
            elif opcode in _PASSED:
                at += _PASSED[opcode]
            elif opcode in (b"\x86", b"t"):  # the tuple is made
                break
            else:
                raise ValueError(f"a pickle with opcode {opcode!r} at byte {at - 1}; only (bytes, whole number) is "
                                 "read, as pickles can run code")
        except struct.error as error:
            raise ValueError("a pickle that is cut") from error
    if picture is None or label is None or label < 0:
        raise ValueError("a pickle that is not (bytes, whole number ≥ 0)")
    return *picture, label
