"""RecordIO: records in a file, the index beside it, and the header of an image record.

A record is `u32 0xced7230a | u32 (cflag << 29 | length) | payload | zero padding to 4 bytes`, all little-endian. A
payload in which the magic number stands at a multiple of 4 is split there: the parts carry cflag 1, 2 … 2, 3 instead
of 0, the four magic bytes are not stored, and the reader puts them back. An image record's payload is the struct
`<IfQQ` (flag, label, id, id2), then `flag` float32 labels, then the encoded image. The index has a line
`key <tab> offset` a record. Layer 1: NumPy and the standard library, nothing of the project but its errors.

Offsets are bytes from the start of the file. Proven by tests/recognition/data/test_recordio.py, against bytes written
down in the test and against MXNet's and dmlc's own readers and writers where they are installed.
"""

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from recognition.errors import DataError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LENGTH_BITS = 29
MAX_LENGTH = 1 << LENGTH_BITS  # a length field has 29 bits
WHOLE, FIRST, MIDDLE, LAST = range(4)

IMAGE_HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
FRAME_BYTES = 8
# From here on float32 skips whole numbers: larger labels need two floats (`label_base` of the file `property`).
FLOAT32_WHOLE = 1 << 24

_INDEX_BLOCK = 16 << 20  # bytes of an index parsed at once, which bounds the temporary arrays
_MAX_DIGITS = 18  # what surely fits an int64


def record_error(path: Path, record: int | None, offset: int, reason: str) -> DataError:
    """The error of one record in the form of all errors about data; `record` is its key, or its number in a scan."""
    return DataError(f"{path}: record {'?' if record is None else record} @ offset {offset}: {reason}")


class Part(NamedTuple):
    """One part of a record in the file: its cflag, where its payload stands, and where the next part begins."""

    cflag: int
    start: int
    stop: int
    end: int


class RecordWriter:
    """Write records one after the other to a new file; a context manager."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open(self.path, "wb")  # noqa: SIM115 - closed by close()
        self._offset = 0

    def write(self, payload: bytes | bytearray | memoryview) -> int:
        """Append one record and return its offset. A payload of 2^29 bytes or more is a DataError."""
        size = memoryview(payload).nbytes
        if size >= MAX_LENGTH:
            raise DataError(f"{self.path}: a payload of {size} bytes; a record holds fewer than {MAX_LENGTH}")
        offset = self._offset
        parts = split_payload(bytes(payload))
        for number, part in enumerate(parts):
            cflag = WHOLE if len(parts) == 1 else FIRST if number == 0 else LAST if number == len(parts) - 1 else MIDDLE
            frame = struct.pack("<II", MAGIC, cflag << LENGTH_BITS | len(part))
            padding = bytes(-len(part) % 4)
            self._file.write(b"".join((frame, part, padding)))
            self._offset += FRAME_BYTES + len(part) + len(padding)
        return offset

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def split_payload(payload: bytes) -> list[bytes]:
    """The parts that a payload is written as: split, and the magic dropped, where it stands at a multiple of 4."""
    parts, start, found = [], 0, payload.find(MAGIC_BYTES)
    while found >= 0:
        if found % 4:
            found = payload.find(MAGIC_BYTES, found + 1)
            continue
        parts.append(payload[start:found])
        start = found + 4
        found = payload.find(MAGIC_BYTES, start)
    return [*parts, payload[start:]]


class RecordReader:
    """Records of one file through a read-only memory map; damaged framing is a DataError.

    `bytes` is the whole file as uint8 [size], `words` its whole 4-byte words as uint32 [size // 4]: what vectorised
    checks read, as every record begins at a multiple of 4.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self.map: mmap.mmap | bytes = b""  # an empty file cannot be mapped
                if self.size:
                    self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.words = np.frombuffer(self.map, "<u4", count=self.size // 4)

    def part(self, offset: int, record: int | None = None, record_offset: int | None = None) -> Part:
        """The part at an offset, its frame and padding checked. Errors name the record that it is a part of."""
        at = offset if record_offset is None else record_offset

        def fail(reason: str) -> DataError:
            return record_error(self.path, record, at, reason if at == offset else f"part @ offset {offset}: {reason}")

        if offset % 4 or not 0 <= offset < self.size:
            raise fail(f"no record can begin here: expected a multiple of 4 below the file's {self.size} bytes")
        if offset + FRAME_BYTES > self.size:
            raise fail(f"the file of {self.size} bytes ends inside the record's frame")
        magic, word = struct.unpack_from("<II", self.map, offset)
        if magic != MAGIC:
            raise fail(f"no record begins here: expected the magic {MAGIC:#010x}, found {magic:#010x}")
        cflag, start = word >> LENGTH_BITS, offset + FRAME_BYTES
        stop = start + (word & MAX_LENGTH - 1)
        end = stop + -stop % 4
        if cflag > LAST:
            raise fail(f"cflag {cflag}; expected 0 to 3")
        if end > self.size:
            raise fail(f"{end - offset} bytes long, but the file of {self.size} bytes ends before: it is cut")
        if any(self.map[stop:end]):
            raise fail(f"padding {bytes(self.map[stop:end]).hex()}; expected zeros")
        return Part(cflag, start, stop, end)

    def parts(self, offset: int, record: int | None = None) -> list[Part]:
        """All parts of the record at an offset, their order checked."""
        part = self.part(offset, record)
        if part.cflag not in (WHOLE, FIRST):
            raise record_error(self.path, record, offset, f"begins with cflag {part.cflag}; expected 0 or 1")
        parts = [part]
        while part.cflag in (FIRST, MIDDLE):
            if (part.stop - part.start) % 4:
                reason = f"a part of {part.stop - part.start} bytes goes on; it could be split only at a multiple of 4"
                raise record_error(self.path, record, offset, reason)
            if part.end == self.size:
                raise record_error(self.path, record, offset, "the file ends before the record's last part: it is cut")
            part = self.part(part.end, record, record_offset=offset)
            if part.cflag not in (MIDDLE, LAST):
                raise record_error(self.path, record, offset, f"a part with cflag {part.cflag}; expected 2 or 3")
            parts.append(part)
        return parts

    def join(self, parts: Sequence[Part]) -> memoryview | bytes:
        """The payload of a record's parts: a view of the file for one part, a copy for several."""
        if len(parts) == 1:
            return memoryview(self.map)[parts[0].start : parts[0].stop]
        return MAGIC_BYTES.join(self.map[part.start : part.stop] for part in parts)

    def read(self, offset: int, record: int | None = None) -> memoryview | bytes:
        """The payload of the record at an offset; no copy unless it was split. `record` is for the error's text."""
        return self.join(self.parts(offset, record))

    def scan(self) -> Iterator[tuple[int, memoryview | bytes]]:
        """All records from the start of the file to its end: (offset, payload)."""
        offset, record = 0, 0
        while offset < self.size:
            parts = self.parts(offset, record)
            yield offset, self.join(parts)
            offset, record = parts[-1].end, record + 1


def read_index(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of an index file, int64 [n] each, in the file's order. A malformed line is a DataError."""
    path = Path(path)
    keys, offsets, lines, rest = [], [], 0, b""
    try:
        with open(path, "rb") as file:
            while block := file.read(_INDEX_BLOCK):
                block = rest + block
                cut = block.rfind(b"\n") + 1
                rest = block[cut:]
                pairs = _parse_index(path, block[:cut], lines)
                lines += len(pairs)
                keys.append(pairs[:, 0].copy())
                offsets.append(pairs[:, 1].copy())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if rest:  # the last line may end without a line end
        pairs = _parse_index(path, rest + b"\n", lines)
        keys.append(pairs[:, 0].copy())
        offsets.append(pairs[:, 1].copy())
    nothing = np.empty(0, np.int64)
    return np.concatenate([nothing, *keys]), np.concatenate([nothing, *offsets])


def _parse_index(path: Path, block: bytes, lines_before: int) -> np.ndarray:
    """The numbers of whole index lines, int64 [n, 2], every byte checked: digits <tab> digits <newline>."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    data = np.frombuffer(block, np.uint8)
    separators = np.flatnonzero((data < ord("0")) | (data > ord("9")))
    digits = np.diff(separators, prepend=-1) - 1
    wanted = np.where(np.arange(len(separators)) % 2, ord("\n"), ord("\t"))
    wrong = (data[separators] != wanted) | (digits < 1) | (digits > _MAX_DIGITS)
    if wrong.any():
        at = int(separators[np.argmax(wrong)])
        number = block.count(b"\n", 0, at)
        line = block.split(b"\n", number + 1)[number]
        raise DataError(f"{path}: line {lines_before + number + 1}: expected 'key<tab>offset', found {line[:60]!r}")
    return np.fromstring(block, np.int64, sep=" ").reshape(-1, 2)


def write_index(path: str | Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Write an index file from keys and offsets, integers [n] each, in the order given."""
    with open(path, "w", encoding="ascii", newline="\n") as file:
        file.writelines(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True))


class ImageHeader(NamedTuple):
    """What stands before the image: flag (number of labels that follow, or 0), labels float32 [max(flag, 1)], ids."""

    flag: int
    labels: np.ndarray
    id: int
    id2: int


def pack_record(labels: float | Sequence[float] | np.ndarray, id: int, image: bytes, id2: int = 0) -> bytes:
    """The payload of an image record: one number is written in the label field, a sequence after the header (flag n).

    A ValueError refuses a label that float32 cannot hold exactly: use `split_label` and state the base in `property`.
    """
    values = np.asarray(labels, np.float64)
    single = values.astype(np.float32)
    if not np.array_equal(single.astype(np.float64), values, equal_nan=True):
        raise ValueError(f"labels {labels}: not exact as float32; write a label from {FLOAT32_WHOLE} on as two floats")
    if values.ndim == 0:
        return IMAGE_HEADER.pack(0, float(values), id, id2) + image
    return IMAGE_HEADER.pack(len(single), 0.0, id, id2) + single.astype("<f4").tobytes() + image


def unpack_record(payload: bytes | memoryview) -> tuple[ImageHeader, memoryview]:
    """The header of an image record and a view of its encoded image. A payload too short for either is a DataError."""
    view = memoryview(payload)
    if len(view) < IMAGE_HEADER.size:
        raise DataError(f"a payload of {len(view)} bytes; an image record's header takes {IMAGE_HEADER.size}")
    flag, label, id, id2 = IMAGE_HEADER.unpack_from(view)
    start = IMAGE_HEADER.size + 4 * flag
    if start > len(view):
        raise DataError(f"flag {flag} announces {4 * flag} bytes of labels; the payload has {len(view)} bytes in all")
    labels = np.frombuffer(view, "<f4", flag, IMAGE_HEADER.size) if flag else np.array([label], np.float32)
    return ImageHeader(flag, labels, id, id2), view[start:]


def split_label(label: int, base: int = FLOAT32_WHOLE) -> tuple[int, int]:
    """The two floats (high, low) of a label = high · base + low, for sets whose `property` states `label_base`."""
    return divmod(label, base)
