"""The files of a run before it starts: a quick look at the training set, verification sets, IJB folders.

The quick look opens no set whole unless an earlier check left its file (recognition/data/sample_map.py): it reads
`property` and the index, holds the index against the .rec file's size, and frames and decodes LOOKED_AT records spread
over the set. `python -m tools.rec_builder verify` looks at all of them. Proven by tests/recognition/test_doctor.py.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.ijb_lists import find_target
from eval.verification_sets import check_set
from recognition.config import Config, find_sets
from recognition.data.bad_samples import decode_face
from recognition.data.dataset import (
    JoinedDataset,
    Property,
    RecordDataset,
    find_shards,
    open_dataset,
    read_property,
    split_roots,
)
from recognition.data.recordio import RecordReader, read_index, unpack_record
from recognition.data.sample_map import SampleMap, ShardEntry, map_path, read_map
from recognition.doctor.report import Report, amount, plural
from recognition.errors import DataError, SettingsError, TrainerError

LOOKED_AT = 400
SMALL = 1 << 30
"""Sets of fewer bytes are opened whole: a second or so."""
_RUN, _RUNS = 1024, 16  # records next to each other, and how many such places, of a set that is not opened whole


@dataclass(frozen=True)
class SetFacts:
    """What is known of one set. images, classes: None where only a whole check would tell."""

    images: int | None
    classes: int | None
    checked: bool


def look_at_sets(config: Config, report: Report) -> list[SetFacts]:
    """The section on the training data; facts of each set of data.root, empty when one cannot be read at all."""
    report.section("training set")
    found = []
    for root in split_roots(config.data.root):
        try:
            found.append(_look(root, config, report))
        except TrainerError as error:
            report.problem(error.status, root.name, str(error))
    return found if len(found) == len(split_roots(config.data.root)) else []


def _look(root: Path, config: Config, report: Report) -> SetFacts:
    if not root.exists():
        raise SettingsError(f"data.root: no such folder: {root.absolute()}")  # as the run would
    paths = find_shards(root)
    stated = read_property(paths[0].parent / "property")
    size = sum(path.stat().st_size for path in paths)
    known = read_map(map_path(root), paths)
    index = [(RecordReader(path), *_index(path)) for path in paths]
    records = sum(len(keys) for _, keys, _ in index)
    images, identities = _stated_images(index)
    facts = SetFacts(len(known.labels) if known else images, known.num_classes if known else stated.num_classes,
                     known is not None)
    told = f"{root}: {amount(size)} in {plural(len(paths), '.rec file')}, {plural(records, 'record')}"
    told += f", {facts.images:,} images" if facts.images is not None else ""
    told += f" of {facts.classes:,} identities" if facts.classes is not None else ""
    report.fact(root.name or str(root), told)
    if stated.num_images is not None and facts.images is not None and stated.num_images != facts.images:
        report.warning("property", f"states {stated.num_images:,} images; the set has {facts.images:,}, which count")
    if identities is not None and stated.num_classes not in (None, identities):
        report.warning("property", f"states {stated.num_classes:,} identities; {identities:,} have a record")
    try:
        _sample(index, stated, config, report)
    except DataError as error:
        report.problem(error.status, "quick look", str(error))
    if not known:
        report.fact("first start", f"checks every record once, which reads most of the {amount(size)}, and leaves a "
                    f"file beside the set ({map_path(root).name}, {amount(12 * records)})")
    return facts


def _index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets in the order of offsets, held against the file. DataError for what a run would refuse."""
    reader = RecordReader(path)
    keys, offsets = read_index(path.with_suffix(".idx"))
    if not len(keys):
        raise DataError(f"{path.with_suffix('.idx')}: lists no record")
    order = np.argsort(offsets, kind="stable")
    keys, offsets = keys[order], offsets[order]
    outside = np.flatnonzero((offsets < 0) | (offsets >= reader.size) | (offsets % 4 != 0))
    if len(outside):
        raise DataError(f"{path.with_suffix('.idx')}: {len(outside)} of {len(keys)} entries point where no record can "
                        f"begin, the first is key {keys[outside[0]]} at {offsets[outside[0]]} of {reader.size} bytes")
    end = reader.parts(int(offsets[-1]), int(keys[-1]))[-1].end
    if end != reader.size:
        raise DataError(f"{path}: {reader.size} bytes, but the last record of {path.with_suffix('.idx').name} ends at "
                        f"{end}: the two do not belong together, or records are missing in the index")
    return keys, offsets


def _stated_images(index: list[tuple[RecordReader, np.ndarray, np.ndarray]]) -> tuple[int | None, int | None]:
    """Images and identity records, as the header record of each shard states; None where one has no header."""
    images = identities = 0
    for reader, keys, offsets in index:
        first = np.flatnonzero(keys == 0)
        header, image = unpack_record(reader.read(int(offsets[first[0]]), 0)) if len(first) else (None, b"x")
        if header is None or len(image) or header.flag < 2:
            return (sum(len(keys) for _, keys, _ in index), None) if len(image) else (None, None)
        start, end = (int(value) for value in header.labels[:2])
        images, identities = images + start - 1, identities + end - start
    return images, identities


def _sample(
    index: list[tuple[RecordReader, np.ndarray, np.ndarray]], stated: Property, config: Config, report: Report
) -> None:
    """Frame and decode records spread over the set."""
    total = sum(len(keys) for _, keys, _ in index)
    wanted = np.unique(np.linspace(0, total - 1, min(LOOKED_AT, total)).astype(np.int64))
    begins = np.cumsum([0, *(len(keys) for _, keys, _ in index)])
    bad, seen = [], 0
    for number in wanted.tolist():
        shard = int(np.searchsorted(begins, number, "right")) - 1
        reader, keys, offsets = index[shard]
        at = number - int(begins[shard])
        where = f"{reader.path}: record {keys[at]} @ offset {offsets[at]}"
        header, image = unpack_record(reader.read(int(offsets[at]), int(keys[at])))
        if not len(image):
            continue
        seen += 1
        limit = stated.num_classes
        if limit is not None and not stated.label_base and not 0 <= header.labels[0] < limit:
            raise DataError(f"{where}: label {header.labels[0]:.0f}; `property` states {limit} identities")
        decoded = decode_face(np.frombuffer(image, np.uint8))
        if isinstance(decoded, str):
            bad.append(f"{where}: {decoded}")
    told = f"{len(wanted)} records framed, {seen} images of them decoded"
    if not bad:
        report.fact("quick look", f"{told}: sound (python -m tools.rec_builder verify looks at every record)")
    elif len(bad) / seen > config.data.bad_share:
        report.problem(DataError.status, "quick look", f"{told}, {len(bad)} cannot be: more than data.bad_share="
                       f"{config.data.bad_share:g} of them; the first:\n" + "\n".join(bad[:3]))
    else:
        report.warning("quick look", f"{told}, {len(bad)} cannot be and will be replaced: {bad[0]}")


def open_if_quick(config: Config) -> RecordDataset | None:
    """The training set where that takes a second or so: it is small, or an earlier check left its file of samples.

    Nothing is written beside it.
    """
    quick = all(read_map(map_path(root), paths) is not None or sum(path.stat().st_size for path in paths) < SMALL
                for root, paths in _shards(config))
    return open_dataset(config.data.root, config.data.weights) if quick else None


def _shards(config: Config) -> list[tuple[Path, list[Path]]]:
    return [(root, find_shards(root)) for root in split_roots(config.data.root)]


def open_for_trial(config: Config) -> tuple[RecordDataset, bool]:
    """The training set, and whether that is all of it: a large one without its file of samples is opened in part."""
    whole = open_if_quick(config)
    if whole is not None:
        return whole, True
    some = [_some_of(root, paths, config.batch_size) for root, paths in _shards(config)]
    return some[0] if len(some) == 1 else JoinedDataset(some, [1.0] * len(some)), False


def _some_of(root: Path, paths: list[Path], at_least: int) -> RecordDataset:
    """Records at some places of the first shard as a set of their own, with the whole set's number of classes."""
    path, stated = paths[0], read_property(paths[0].parent / "property")
    reader = RecordReader(path)
    keys, offsets = _index(path)
    run = max(_RUN, -(-2 * at_least // _RUNS))
    starts = np.linspace(0, max(0, len(keys) - run), _RUNS).astype(np.int64)
    chosen = np.unique((starts[:, None] + np.arange(run)).ravel())
    taken, labels = [], []
    for at in chosen[chosen < len(keys)].tolist():
        header, image = unpack_record(reader.read(int(offsets[at]), int(keys[at])))
        if len(image):
            taken.append(at)
            base = stated.label_base if header.flag >= 2 else 0
            labels.append(int(header.labels[0]) * base + int(header.labels[1]) if base else int(header.labels[0]))
    label = np.array(labels, np.int64)
    entry = ShardEntry(path.name, (0, 0), (0, 0), len(taken), None)
    classes = stated.num_classes if stated.num_classes is not None else int(label.max(initial=0)) + 1
    samples = SampleMap((entry,), classes, "", "a part", offsets[taken], label, keys[taken])
    return RecordDataset(root, [reader], samples, replace(stated, num_classes=classes))


def look_at_evaluation(config: Config, report: Report) -> None:
    """The section on what the run is scored on."""
    report.section("evaluation")
    if not config.evaluation.sets and not config.evaluation.ijb:
        report.warning("sets", "none: the run ends without a score (evaluation.sets, evaluation.ijb)")
        return
    try:
        for path in find_sets(config):
            check_set(path)
            report.fact(path.stem, f"{path}, {amount(path.stat().st_size)}")
        for folder in config.evaluation.ijb:
            report.fact(Path(folder).name, f"{folder}: {find_target(folder)}")
    except (SettingsError, DataError) as error:
        report.problem(error.status, "sets", str(error))
