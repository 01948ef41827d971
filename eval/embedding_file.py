"""Embeddings on disk: rows of named columns as Parquet or .npz, written as they come.

Owns the writing in pieces, so that memory does not grow with the number of rows (a name takes some 100 bytes), and in
one move: under a temporary name until all is there. Proven by tests/eval/test_embed_command.py.
"""

import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from recognition.errors import DataError, SettingsError

ENDINGS = (".parquet", ".npz")
ROWS_AT_ONCE = 8192  # of a Parquet row group: 16 MB at 512 numbers a row

Columns = Mapping[str, np.ndarray | Sequence[str]]  # every one with as many rows; [n, d] for vectors


class _Writer(Protocol):
    def add(self, columns: Columns) -> None: ...

    def finish(self) -> None: ...


def check_output(path: Path) -> None:
    """SettingsError unless the name says which of the formats it is to be."""
    if path.suffix not in ENDINGS:
        raise SettingsError(f"{path}: expected a name that ends in {' or '.join(ENDINGS)}")


@contextlib.contextmanager
def open_embeddings(path: Path, about: Mapping[str, Any]) -> Iterator[Callable[[Columns], None]]:
    """What adds rows to a file that is there when all went well, and not at all otherwise.

    about: plain values that hold for the whole file, kept in it as JSON: as `about` in the schema's metadata of
    Parquet, and as the array `about` of an .npz.
    DataError when the disk does not take it.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            writer = _Parquet(file, about) if path.suffix == ".parquet" else _Npz(file, about)
            yield writer.add
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


class _Parquet:
    """Vectors are lists of a fixed length, names UTF-8."""

    def __init__(self, file: IO[bytes], about: Mapping[str, Any]) -> None:
        try:
            import pyarrow  # type: ignore[import-untyped]  # not above: it takes half a second
            from pyarrow import parquet
        except ImportError as error:
            raise SettingsError("writing Parquet needs pyarrow (requirements.txt), .npz does not") from error
        self._arrow, self._parquet = pyarrow, parquet
        self._file, self._about = file, {"about": json.dumps(about)}
        self._open: Any = None
        self._waiting: list[Any] = []
        self._rows = 0

    def add(self, columns: Columns) -> None:
        arrays = {name: self._array(values) for name, values in columns.items()}
        table = self._arrow.table(arrays).replace_schema_metadata(self._about)
        self._waiting.append(table)
        self._rows += len(table)
        if self._rows >= ROWS_AT_ONCE:
            self._flush()

    def _array(self, values: np.ndarray | Sequence[str]) -> Any:
        if isinstance(values, np.ndarray) and values.ndim == 2:
            return self._arrow.FixedSizeListArray.from_arrays(self._arrow.array(values.reshape(-1)), values.shape[1])
        return self._arrow.array(values)

    def _flush(self) -> None:
        table = self._arrow.concat_tables(self._waiting)
        if self._open is None:  # no dictionaries: no two embeddings share their numbers
            self._open = self._parquet.ParquetWriter(
                self._file, table.schema, compression="zstd", use_dictionary=False
            )
        self._open.write_table(table, row_group_size=len(table))
        self._waiting, self._rows = [], 0

    def finish(self) -> None:
        if self._waiting:
            self._flush()
        if self._open is not None:
            self._open.close()


class _Npz:
    """An uncompressed .npz of one array a column. Its length stands in front of an array, so they wait in files."""

    def __init__(self, file: IO[bytes], about: Mapping[str, Any]) -> None:
        self._file, self._about = file, about
        self._arrays: dict[str, tuple[IO[bytes], np.dtype, tuple[int, ...]]] = {}
        self._texts: dict[str, list[str]] = {}
        self._rows = 0

    def add(self, columns: Columns) -> None:
        for name, values in columns.items():
            if not isinstance(values, np.ndarray):
                self._texts.setdefault(name, []).extend(values)
                continue
            if name not in self._arrays:
                waiting = tempfile.TemporaryFile(dir=Path(self._file.name).parent)  # noqa: SIM115
                self._arrays[name] = waiting, values.dtype, values.shape[1:]  # it lives as long as this object
            self._arrays[name][0].write(np.ascontiguousarray(values).data)
        self._rows += len(next(iter(columns.values())))

    def finish(self) -> None:
        with zipfile.ZipFile(self._file, "w") as archive:
            with archive.open("about.npy", "w") as member:
                np.save(member, np.array(json.dumps(self._about)))
            for name, texts in self._texts.items():
                kind = np.dtype(f"<U{max(1, *map(len, texts))}")
                with self._member(archive, name, kind, ()) as member:
                    for start in range(0, len(texts), ROWS_AT_ONCE):
                        member.write(np.array(texts[start : start + ROWS_AT_ONCE], kind).tobytes())
            for name, (waiting, kind, shape) in self._arrays.items():
                waiting.seek(0)
                with self._member(archive, name, kind, shape) as member:
                    shutil.copyfileobj(waiting, member, 1 << 20)
                waiting.close()

    @contextlib.contextmanager
    def _member(
        self, archive: zipfile.ZipFile, name: str, kind: np.dtype, shape: tuple[int, ...]
    ) -> Iterator[IO[bytes]]:
        head = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (self._rows, *shape)}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, head)
            yield member
