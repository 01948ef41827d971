"""The verb `index`: NAME.idx, the CRC sidecar NAME.crc and the set's `samples.map` anew, from nothing but NAME.rec.

The ids that im2rec and this project write into the records are the keys; where ids repeat, a record's key is its number
in the file. Framing must be sound: what is damaged, `verify --repair` copies without. A sidecar that is there is the
only witness of what the bytes were when the set was made: one that agrees with the records stays, and records that do
not agree with it are refused, unless it alone is asked for (`--only crc --replace`). Proven by
tests/tools/records/test_reindex.py.
"""

import argparse
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable
from tqdm import tqdm

from recognition.data.checksums import crc_path, read_checksums, write_checksums
from recognition.data.dataset import find_shards, open_dataset
from recognition.data.recordio import IMAGE_HEADER, RecordReader, write_index
from recognition.data.sample_map import map_path
from recognition.errors import DataError, SettingsError
from tools.records.common_options import add_common, report
from tools.records.output import new_file

_LARGEST_KEY = 10**18  # what an index can hold


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `index` to the verbs of a parser."""
    verb = verbs.add_parser("index", help="write index, checksums and map of samples anew, from the .rec")
    verb.set_defaults(verb=_index)
    verb.add_argument("set", type=Path, metavar="SET", help="folder of the set, or a .rec file")
    verb.add_argument("--keys", choices=("auto", "id", "number"), default="auto", help="what a record's key is: the id "
                      "in it, or its number in the file (default: the id where all differ, else the number)")
    verb.add_argument("--only", choices=("idx", "crc", "map"), help="write only the index, only the "
                      "checksums, or only the map of samples, with which training starts sooner")
    verb.add_argument("--replace", action="store_true", help="replace those that exist")
    add_common(verb, threads=False)


def _index(options: argparse.Namespace) -> int:
    facts = reindex(options.set, options.keys, options.only, options.replace)
    table = PrettyTable(["file", "records", "keys", "written"], align="l")
    for shard in facts["shards"]:
        table.add_row([shard["file"], f"{shard['records']:,}", shard["keys"], ", ".join(shard["written"])])
    lines = [str(table), *(f"note: {note}" for note in facts["notes"])]
    if facts["fault"]:
        lines.append(f"The set does not open yet: {facts['fault']}")
    report(facts, "\n".join(lines), options.json)
    return DataError.status if facts["fault"] else 0


def reindex(root: Path, keys: str = "auto", only: str | None = None, replace: bool = False) -> dict[str, Any]:
    """Write what is asked beside each .rec file; says what was written and why the set does not open, if it does not.

    Raises:
        DataError: damaged framing, `keys="id"` where ids repeat, or a record that is not what a sidecar of as many
            records states. Nothing is written for that file.
        SettingsError: a file that exists, without `replace`; but a sidecar that agrees needs none.
    """
    paths = find_shards(root)
    for path in paths:
        for target in _targets(path, only):
            if target.exists() and not replace and (target.suffix == ".idx" or only == "crc"):
                raise SettingsError(f"{target}: exists; --replace writes it anew")
    shards = [_write(path, keys, only, replace) for path in paths] if only != "map" else []
    fault: str | None = None
    notes: list[str] = []
    if only in (None, "map"):
        map_path(root).unlink(missing_ok=True)  # training writes one at its start, so that nobody misses it
    try:
        open_dataset(root, sidecar="write" if only in (None, "map") else "ignore", notes=notes)
    except DataError as error:
        fault = str(error)
    return {"root": str(root), "shards": shards, "fault": fault, "notes": notes}


def _targets(rec: Path, only: str | None) -> list[Path]:
    return [path for path in (rec.with_suffix(".idx"), crc_path(rec)) if only in (None, path.suffix[1:])]


def _write(rec: Path, keys: str, only: str | None, replace: bool) -> dict[str, Any]:
    offsets, ids, sums = _scan(rec)
    key, kind = _keys(rec, offsets, ids, keys)
    targets = _targets(rec, only)
    if only is None and crc_path(rec).exists() and _agrees(rec, offsets, sums, replace):
        targets.remove(crc_path(rec))
    for target in targets:
        with new_file(target, replace=True) as writing:
            if target.suffix == ".idx":
                write_index(writing, key, offsets)
            else:
                write_checksums(writing, rec.stat().st_size, sums)
    return {"file": str(rec), "records": len(offsets), "keys": kind, "written": [path.name for path in targets]}


def _agrees(rec: Path, offsets: np.ndarray, sums: np.ndarray, replace: bool) -> bool:
    """Whether the sidecar states these records; false, with `replace`, for one of another number, or damaged itself."""
    sidecar = crc_path(rec)
    try:
        stated = read_checksums(sidecar)
    except DataError:
        if not replace:
            raise
        return False
    if len(stated.records) == len(sums):
        changed = np.flatnonzero(stated.records != sums)
        if len(changed):
            first = int(changed[0])
            raise DataError(f"{rec}: record {first} @ offset {offsets[first]}: CRC {sums[first]:08x}, but "
                            f"{sidecar.name} states {stated.records[first]:08x} ({len(changed)} such): bits have "
                            "changed; `verify --repair` copies what is sound, --only crc --replace takes the records "
                            "as they are")
        if stated.size == rec.stat().st_size:
            return True
    if not replace:
        raise SettingsError(f"{sidecar}: states {len(stated.records)} records in {stated.size} bytes, {rec.name} has "
                            f"{len(sums)} in {rec.stat().st_size}; --replace writes it anew")
    return False


def _scan(rec: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets int64, ids uint64 (0 where a payload is too short for one) and CRCs uint32 of all records, [n] each."""
    reader = RecordReader(rec)
    offsets, ids, sums = array("q"), array("Q"), array("I")
    with tqdm(total=reader.size, unit="B", unit_scale=True, desc=rec.name, disable=None) as bar:
        for offset, payload in reader.scan():
            bar.update(offset - bar.n)
            offsets.append(offset)
            ids.append(IMAGE_HEADER.unpack_from(payload)[2] if len(payload) >= IMAGE_HEADER.size else 0)
            sums.append(zlib.crc32(payload))
    return np.frombuffer(offsets, np.int64), np.frombuffer(ids, np.uint64), np.frombuffer(sums, np.uint32)


def _keys(rec: Path, offsets: np.ndarray, ids: np.ndarray, wanted: str) -> tuple[np.ndarray, str]:
    """Keys int64 [n] and what they are."""
    distinct = len(np.unique(ids)) == len(ids) and (not len(ids) or int(ids.max()) < _LARGEST_KEY)
    if wanted == "id" and not distinct:
        raise DataError(f"{rec}: ids repeat, or are {_LARGEST_KEY} and more, and cannot be keys; try --keys number")
    if wanted == "number" or not distinct:
        return np.arange(len(offsets)), "number in the file"
    return ids.astype(np.int64), "id"
