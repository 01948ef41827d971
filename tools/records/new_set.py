"""Write a set of chosen images: its shards, `property`, `labels.tsv`, and a report of what it is.

Images whose labels rise are written in the common face layout, others in im2rec's, whose records stand in any order.
Used by shuffle, merge, split and verify's `--repair`. Proven by tests/tools/records/test_copies.py.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable
from tqdm import tqdm

from recognition.data.dataset import RecordDataset, open_dataset
from recognition.data.image_file import ImageError, image_size
from recognition.data.recordio import FLOAT32_WHOLE
from recognition.data.shard_writer import PlainShardWriter, ShardWriter
from recognition.errors import DataError, SettingsError
from tools.records.common_options import whole
from tools.records.names import ImageSet, write_labels
from tools.records.reorder import DEFAULT_MEMORY, Sets, numbers, read_in_order


@dataclass(frozen=True)
class Selection:
    """What a new set has: samples of the sources int64 [n] in the new order, their new labels int64 [n], names."""

    sample: np.ndarray
    label: np.ndarray
    num_classes: int
    names: dict[int, str] | None = None


@dataclass(frozen=True)
class Writing:
    """How it is written: shards, GB of images held at once, and whether in im2rec's layout whatever the order."""

    shards: int = 1
    memory: float = DEFAULT_MEMORY
    plain: bool = False


def add_writing(verb: argparse.ArgumentParser) -> None:
    """Add the options of verbs that write sets."""
    verb.add_argument("--shards", type=whole(1, 99_999), default=1, metavar="N",
                      help="write train_00.rec … instead of train.rec")
    verb.add_argument("--memory", type=gigabytes, default=DEFAULT_MEMORY, metavar="GB", help="images held in memory at "
                      "once; larger sets go through files beside OUT that take as much room again "
                      f"(default: {DEFAULT_MEMORY:g})")
    verb.add_argument("--replace", action="store_true", help="replace what this command wrote to OUT earlier")


def gigabytes(text: str) -> float:
    """A type of argparse options: gigabytes, above 0."""
    if not 0 < (number := float(text)) < 1e6:
        raise argparse.ArgumentTypeError(f"{text}; expected a number of gigabytes above 0")
    return number


def write_selection(folder: Path, sources: Sets, chosen: Selection, how: Writing) -> dict[str, Any]:
    """Write the set into an empty folder, open it as a run would, and say what it is."""
    total = len(chosen.sample)
    if how.shards > total:
        raise SettingsError(f"--shards {how.shards}; expected 1 to {total}, the number of images")
    images = read_in_order(sources, chosen.sample, folder, how.memory)
    names = (sources.name(sample) for sample in numbers(chosen.sample))
    plain = how.plain or bool((np.diff(chosen.label) < 0).any())
    base = FLOAT32_WHOLE if chosen.num_classes > FLOAT32_WHOLE else 0
    height, width = _common_size(sources.datasets)
    _write_shards(folder, zip(numbers(chosen.label), images, names, strict=True), total, how.shards, plain, base)
    lines = [f"{chosen.num_classes},{height},{width}", *([f"label_base={base}"] if base else [])]
    (folder / "property").write_text("\n".join(lines) + "\n")
    if chosen.names is not None:
        write_labels(folder, chosen.names)
    written = open_dataset(folder, sidecar="ignore")
    if written.num_images != total:
        raise DataError(f"{folder}: wrote {total} images, found {written.num_images} on reading back")
    return {
        "images": total, "classes": chosen.num_classes, "identities_with_images": len(np.unique(chosen.label)),
        "height": height, "width": width, "shards": how.shards, "layout": "im2rec" if plain else "face",
        "bytes": sum(path.stat().st_size for path in written.paths), "fingerprint": written.fingerprint(),
    }


def _write_shards(
    folder: Path, images: Iterable[tuple[int, bytes, str]], total: int, shards: int, plain: bool, label_base: int
) -> None:
    width = max(2, len(str(shards - 1)))
    stems = ["train"] if shards == 1 else [f"train_{number:0{width}d}" for number in range(shards)]
    ends = [-(-total * number // shards) for number in range(1, shards + 1)]
    left = iter(tqdm(images, total=total, unit=" images", desc="write", disable=None))
    start = 0
    for stem, end in zip(stems, ends, strict=True):
        with (PlainShardWriter if plain else ShardWriter)(folder / f"{stem}.rec", label_base) as shard:
            for _ in range(start, end):
                shard.add(*next(left))
        start = end


def _common_size(datasets: Sequence[ImageSet]) -> tuple[int, int]:
    """Height and width of all sets, as stated or else of their first images; a DataError when they differ."""
    sizes = [_size(dataset) for dataset in datasets]
    for dataset, size in zip(datasets, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(f"{dataset.root}: images of {size[1]}×{size[0]} pixels, but {datasets[0].root} has "
                            f"{sizes[0][1]}×{sizes[0][0]}; a set has one size")
    return sizes[0]


def _size(dataset: ImageSet) -> tuple[int, int]:
    if dataset.stated.height and dataset.stated.width:
        return dataset.stated.height, dataset.stated.width
    try:
        return image_size(dataset.encoded(0))
    except ImageError as error:
        raise DataError(f"{dataset.where(0)}: {error}") from error


def source_facts(dataset: RecordDataset) -> dict[str, Any]:
    """A source in a set's provenance."""
    return {"set": str(dataset.root), "images": dataset.num_images, "classes": dataset.num_classes,
            "fingerprint": dataset.fingerprint()}


def table_of(facts: dict[str, Any], title: str) -> PrettyTable:
    """What a written set is, for a person."""
    table = PrettyTable(["set", title], align="l")
    for name in ("images", "classes", "identities_with_images", "shards", "layout", "bytes", "fingerprint"):
        value = facts[name]
        table.add_row([name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value])
    return table
