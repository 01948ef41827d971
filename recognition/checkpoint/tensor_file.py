"""safetensors files, written here so that bytes are hashed in the pass that writes them and never copied as a whole.

    8 bytes        length of the header, little-endian
    header         JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}}, padded with spaces to 8 bytes
    data           the tensors one after another, largest element first, so that each is aligned

The `safetensors` package reads what is written here, and the other way round. It would hold a second copy of every
tensor while it writes; its reader maps the file, so that a read error or a file that shrinks kills the process, and it
parses headers of up to 100 MB. Every claim of a header is checked here before memory is taken.
Proven by tests/recognition/checkpoint/test_tensor_file.py.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from recognition.checkpoint.layout import MAX_JSON_BYTES, is_count, open_plain, parse_json
from recognition.errors import CheckpointError

CHUNK = 8 << 20
"""Bytes written, read or hashed at once: large enough for the disk, small enough to stay in the cache in between."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_DIMS = 8


@dataclass(frozen=True)
class Blocks:
    """A tensor to be written in parts that follow one another along dim 0, so that it is nowhere held as a whole."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Iterable[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "Blocks":
        """A tensor in one part."""
        return cls(tensor.dtype, tuple(tensor.shape), [tensor])

    @property
    def num_bytes(self) -> int:
        """Of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: where its bytes begin in the file, and what they are."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


def write_tensors(
    path: Path, tensors: Mapping[str, Blocks], begun: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Write a new file and bring it to the disk; its facts. `begun` is called when only the header is written."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in order:
        blocks, begin = tensors[name], end
        end += blocks.num_bytes
        header[name] = {"dtype": _NAMES[blocks.dtype], "shape": list(blocks.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{path.name}: {len(text)} bytes of names and shapes; expected at most {MAX_JSON_BYTES}")
    with NewFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begun()
        for name in order:
            written = sum(file.write(_bytes_of(part)) for part in tensors[name].parts)
            assert written == tensors[name].num_bytes, name
    return file.facts


class NewFile:
    """A file that must not exist yet, hashed while it is written and on the disk when left without an error."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> "NewFile":
        return self

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes; how many they were."""
        view = memoryview(content)
        for low in range(0, len(view), CHUNK):
            chunk = view[low : low + CHUNK]
            self._digest.update(chunk)
            while chunk:
                chunk = chunk[os.write(self._descriptor, chunk) :]
        self._size += len(view)
        return len(view)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    @property
    def facts(self) -> dict[str, Any]:
        """Size and SHA-256 of what was written."""
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}


def facts_of(path: Path, at_most: int, from_disk: bool = False) -> dict[str, Any]:
    """Size and SHA-256 of a file, of which no more than `at_most` bytes are read.

    from_disk: what the system holds of it in memory is dropped first, as far as it can be asked to.
    """
    digest, buffer = hashlib.sha256(), bytearray(CHUNK)
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        left = min(size, at_most)
        while left and (count := file.readinto(memoryview(buffer)[: min(left, CHUNK)])):  # type: ignore[attr-defined]
            digest.update(memoryview(buffer)[:count])
            left -= count
    return {"bytes": size, "sha256": digest.hexdigest()}


def read_header(path: Path) -> dict[str, Entry]:
    """What a file holds, by name. CheckpointError unless its tensors fill the file exactly, without gap or overlap."""
    try:
        with open_plain(path) as file:
            return _header(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name, on the CPU."""
    return read_rows(path, None, None)


def read_rows(path: Path, first: int | None, last: int | None, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Rows [first, last) along dim 0 of the tensors of a file, all or the named ones; None for both: whole tensors."""
    try:
        with open_plain(path) as file:
            header = _header(file)
            wanted = header.keys() if names is None else [name for name in names if name in header]
            return {name: _read(file, header[name], first, last) for name in wanted}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _header(file: BinaryIO) -> dict[str, Entry]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 0 < length <= min(size - 8, MAX_JSON_BYTES):
        raise ValueError(f"a header of {length} bytes in a file of {size}: not a safetensors file")
    text = file.read(length)
    if len(text) != length:
        raise ValueError("cut short while it was read")
    found = parse_json(text)
    found.pop("__metadata__", None)
    entries, position = {}, 0
    for name, claim in sorted(found.items(), key=lambda item: _begin(*item)):
        begin, end = claim["data_offsets"]
        dtype, shape = DTYPES.get(str(claim.get("dtype"))), claim.get("shape")
        good = isinstance(shape, list) and len(shape) <= _MAX_DIMS and all(map(is_count, shape))
        good = good and math.prod(max(side, 1) for side in shape) < 1 << 60
        if dtype is None or not good or begin != position or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name[:80]!r} claims {str(claim)[:120]}, @ offset {position} of the data")
        entries[name] = Entry(dtype, tuple(shape), 8 + length + begin)
        position = end
    if 8 + length + position != size:
        raise ValueError(f"tensors of {position} bytes in {size - 8 - length} bytes of data")
    return entries


def _begin(name: str, claim: Any) -> tuple[int, int]:
    offsets = claim.get("data_offsets") if isinstance(claim, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise ValueError(f"{name[:80]!r} has no place in the file")
    return offsets[0], offsets[1]


def _read(file: BinaryIO, entry: Entry, first: int | None, last: int | None) -> Tensor:
    shape, offset = entry.shape, entry.offset
    if first is not None and last is not None:
        if not shape or not 0 <= first <= last <= shape[0]:
            raise ValueError(f"rows [{first}, {last}) of a tensor of shape {list(shape)}")
        offset += first * math.prod(shape[1:]) * entry.dtype.itemsize
        shape = (last - first, *shape[1:])
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=entry.dtype)
    tensor = torch.empty(shape, dtype=entry.dtype)
    view = _bytes_of(tensor)
    file.seek(offset)
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("cut short while it was read")
        done += count
    return tensor


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; of one on the CPU that is contiguous, its own memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
