"""Where the samples of a set stand and what they are labelled: arrays, and the file that spares the next start.

A set is checked whole once (recognition/data/shard.py). What came out may be kept beside it in `samples.map`, for a
single .rec file in `NAME.samples.map`, which later starts map into memory: the ranks of a machine share its pages.

    "SAMPLES1" | u64 bytes of the JSON | JSON: the shards and the facts of the set | blanks to a multiple of 64 bytes
    | offsets int64 [n] | labels int32 [n] (int64 from 2^31 classes on) | keys (int32 or int64 [n]) where a shard's keys
    are not consecutive

All little-endian: 12 bytes a sample, 16 or 20 with keys. The file is believed as long as every .rec and .idx has the
size and the modification time that stand in it, `property` has the same bytes, the arrays hash to the fingerprint, the
rest of the JSON and the keys to its `digest`, and its `checks` are those of today; else it is ignored. It is written
under another name and renamed, while the others of a machine wait.
Proven by tests/recognition/data/test_sample_map.py.
"""

import contextlib
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from recognition.data.shard import open_shard
from recognition.errors import DataError

try:
    import fcntl
except ImportError:  # where there are no such locks, each rank writes the same
    fcntl = None  # type: ignore[assignment]

MAP_NAME = "samples.map"
_MAGIC = b"SAMPLES1"
_HEADER = struct.Struct("<8sQ")
_ALIGNED = 64
_MAX_JSON = 1 << 26  # bytes; a shard takes about 150
_HASHED = 1 << 20  # samples hashed at once
_CHECKS = 1  # raised when a check is added or changed: what passed the older ones is checked again


@dataclass(frozen=True)
class ShardEntry:
    """One .rec file of a set: its state on the disk, and which samples are its own."""

    name: str
    record_state: tuple[int, int]  # bytes and modification time in ns
    index_state: tuple[int, int]
    count: int
    first_key: int | None  # None: keys are listed


@dataclass(frozen=True)
class SampleMap:
    """The samples of a set in order. Labels are whole, ≥ 0 and < num_classes; offsets count from a .rec's start."""

    shards: tuple[ShardEntry, ...]
    num_classes: int
    property_hash: str
    fingerprint: str
    offsets: np.ndarray  # int64 [n]
    labels: np.ndarray  # int32 or int64 [n]
    keys: np.ndarray | None  # int32 or int64 [n]

    @property
    def first(self) -> np.ndarray:
        """The first sample of each shard, and at the end their number: int64 [shards + 1]."""
        return np.cumsum([0, *(shard.count for shard in self.shards)])


def map_path(root: Path) -> Path:
    """Where the map of a set stands: in its folder, or beside its one .rec file."""
    return root.with_suffix(f".{MAP_NAME}") if root.is_file() else root / MAP_NAME


def open_map(
    root: Path, paths: Sequence[Path], num_classes: int | None, label_base: int, use: bool, write: bool
) -> tuple[SampleMap, str | None]:
    """The samples of a set's shards, and why they could not be kept in a file (None where they are, or need not be).

    use: believe a file that is up to date.  write: leave one where there is none.
    """
    path, found = map_path(root), None
    if use:
        found = read_map(path, paths)
    if found or not write:
        return found or check_set(paths, num_classes, label_base), None
    with _only_one(paths[0].with_suffix(".idx")):
        found = read_map(path, paths) if use else None  # another rank may have written it while this one waited
        if found is None:
            checked = check_set(paths, num_classes, label_base)
            try:
                write_map(path, checked)
            except OSError as error:
                return checked, f"{path} cannot be written ({error.strerror}): every rank holds these samples in memory"
            found = read_map(path, paths) or checked  # the file's pages are shared, this process's arrays are not
    return found, None


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Let one process of the machine in at a time, where the file system has locks; ends with the process."""
    if fcntl is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(open(path, "rb"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_set(paths: Sequence[Path], num_classes: int | None, label_base: int) -> SampleMap:
    """Check every record of the shards; their samples in the order of shards and keys. Raises DataError."""
    property_hash = _property_hash(paths[0].parent)
    entries, offsets, labels, keys = [], [], [], []
    for path in paths:
        states = _state(path), _state(path.with_suffix(".idx"))  # before reading: what changes later shows
        shard = open_shard(path, num_classes, label_base)
        consecutive = isinstance(shard.keys, range)
        first_key = (shard.keys.start if shard.keys else 0) if isinstance(shard.keys, range) else None
        entries.append(ShardEntry(path.name, *states, len(shard.labels), first_key))
        offsets.append(shard.offsets)
        labels.append(_narrow(shard.labels))
        keys.append(shard.keys if consecutive else _narrow(np.asarray(shard.keys)))
    every_key = None
    if any(entry.first_key is None for entry in entries):
        every_key = np.concatenate([_narrow(np.asarray(part, np.int64)) for part in keys])
        entries = [replace(entry, first_key=None) for entry in entries]
    label = _joined(labels)
    found = SampleMap(
        tuple(entries), num_classes if num_classes is not None else int(label.max(initial=-1)) + 1, property_hash, "",
        _joined(offsets), label, every_key,
    )
    for array in (found.offsets, found.labels):
        array.setflags(write=False)
    return replace(found, fingerprint=fingerprint(found))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _narrow(values: np.ndarray) -> np.ndarray:
    """int64 as int32 where they fit."""
    return values.astype(np.int32) if values.max(initial=0) < 1 << 31 else values


def fingerprint(samples: SampleMap) -> str:
    """A short hash of what a set is: its labels, its records' sizes and order, whatever folder it stands in."""
    digest = hashlib.blake2b(f"{samples.num_classes} {len(samples.labels)}".encode(), digest_size=8)
    first = samples.first.tolist()
    for shard, (start, stop) in zip(samples.shards, pairwise(first), strict=True):
        digest.update(f" {shard.record_state[0]} {shard.count} ".encode())
        for array in (samples.offsets, samples.labels):
            for at in range(start, stop, _HASHED):
                digest.update(np.ascontiguousarray(array[at : min(at + _HASHED, stop)], np.int64).data)
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, int]:
    """Bytes and modification time in ns of a file."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _property_hash(folder: Path) -> str:
    path = folder / "property"
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() if path.exists() else ""
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def write_map(path: Path, samples: SampleMap) -> None:
    """Write a map in one piece. Raises OSError; then nothing is left behind."""
    facts = {name: getattr(samples, name) for name in ("num_classes", "property_hash", "fingerprint")}
    arrays = [samples.offsets, samples.labels] + ([] if samples.keys is None else [samples.keys])
    described = {
        "checks": _CHECKS, "shards": [asdict(shard) for shard in samples.shards], **facts,
        "samples": len(samples.labels),
        "types": [array.dtype.newbyteorder("<").str for array in arrays],
    }
    described["digest"] = _digest(described, samples.keys)
    text = json.dumps(described).encode()
    text += b" " * (-(len(text) + _HEADER.size) % _ALIGNED)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(_HEADER.pack(_MAGIC, len(text)) + text)
            for array in arrays:
                file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _digest(described: dict, keys: np.ndarray | None) -> str:
    """A hash of what the JSON says, the fingerprint and so offsets and labels among it, and of the keys."""
    facts = {name: value for name, value in described.items() if name != "digest"}
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    if keys is None:
        return digest.hexdigest()
    for start in range(0, len(keys), _HASHED):
        digest.update(np.ascontiguousarray(keys[start : start + _HASHED], np.int64).data)
    return digest.hexdigest()


def read_map(path: Path, paths: Sequence[Path]) -> SampleMap | None:
    """The map in a file, its arrays views of the file; None where it is missing, damaged, or of other files."""
    try:
        with open(path, "rb") as file:
            magic, length = _HEADER.unpack(file.read(_HEADER.size))
            if magic != _MAGIC or length > _MAX_JSON:
                return None
            described = json.loads(file.read(length))
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = _described(described, data, _HEADER.size + length, size)
        if described["checks"] != _CHECKS or described["digest"] != _digest(described, found.keys):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error, OverflowError):
        return None
    current = [(p.name, _state(p), _state(p.with_suffix(".idx"))) for p in paths]
    stored = [(shard.name, shard.record_state, shard.index_state) for shard in found.shards]
    if current != stored or found.property_hash != _property_hash(paths[0].parent):
        return None
    return found if fingerprint(found) == found.fingerprint and _plausible(found) else None


def _described(described: dict, data: mmap.mmap, start: int, size: int) -> SampleMap:
    """The map that the JSON describes; ValueError, KeyError or TypeError where it describes none."""
    shards = tuple(
        ShardEntry(str(s["name"]), tuple(s["record_state"]), tuple(s["index_state"]), s["count"], s["first_key"])
        for s in described["shards"]
    )
    count, kinds = described["samples"], described["types"]
    if len(kinds) not in (2, 3) or not set(kinds) <= {"<i4", "<i8"} or kinds[0] != "<i8":
        raise ValueError("types")
    whole = [count, described["num_classes"], *(shard.count for shard in shards)]
    whole += [shard.first_key for shard in shards] if len(kinds) == 2 else []
    if not all(type(value) is int and 0 <= value < 1 << 62 for value in whole):
        raise ValueError("numbers")
    if sum(shard.count for shard in shards) != count:
        raise ValueError("counts")
    arrays = []
    for kind in kinds:
        arrays.append(np.frombuffer(data, kind, count, start))
        start += arrays[-1].nbytes
    if start != size:
        raise ValueError("size")
    return SampleMap(
        shards, described["num_classes"], str(described["property_hash"]), str(described["fingerprint"]),
        arrays[0], arrays[1], arrays[2] if len(arrays) == 3 else None,
    )


def _plausible(samples: SampleMap) -> bool:
    """Whether labels are of classes and offsets in their files: a file that says otherwise was not written here."""
    if len(samples.labels) and not 0 <= samples.labels.min() <= samples.labels.max() < samples.num_classes:
        return False
    first = samples.first.tolist()
    parts = [samples.offsets[start:stop] for start, stop in pairwise(first)]
    return all(
        not len(part) or 0 <= part.min() <= part.max() <= shard.record_state[0] - 8
        for part, shard in zip(parts, samples.shards, strict=True)
    )
