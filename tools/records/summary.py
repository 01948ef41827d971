"""Say what is in a RecordIO set: counts, images per identity, sizes, what its header and property state, a picture.

Proven by tests/tools/test_rec_builder.py.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from prettytable import PrettyTable

from recognition.data.dataset import RecordDataset
from recognition.data.image_file import ImageError, decode_rgb, image_size, is_jpeg
from recognition.data.recordio import RecordReader, unpack_record
from tools.records.histogram import images_histogram

_SAMPLED = 20_000  # images whose header is read: sizes are the same all over a set, or differ everywhere
_TILE, _ROWS, _COLUMNS = 112, 12, 12


def summarise(dataset: RecordDataset) -> dict[str, Any]:
    """The facts of a set, ready for JSON. Image and byte sizes are those of evenly spaced images, 20,000 at most."""
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    present = counts[counts > 0]
    samples = np.unique(np.linspace(0, dataset.num_images - 1, min(_SAMPLED, dataset.num_images)).astype(np.int64))
    sizes: Counter[str] = Counter()
    lengths, jpegs = [], 0
    for sample in samples.tolist():
        encoded = dataset.encoded(sample)
        lengths.append(len(encoded))
        jpegs += is_jpeg(encoded)
        try:
            height, width = image_size(encoded)
            sizes[f"{width}×{height}"] += 1
        except ImageError:
            sizes["unreadable"] += 1
    stated = {name: value for name, value in vars(dataset.stated).items() if value}
    return {
        "root": str(dataset.root),
        "images": dataset.num_images,
        "classes": dataset.num_classes,
        "identities_with_images": len(present),
        "images_per_identity": _spread(present),
        "images_histogram": images_histogram(dataset.labels),
        "encoded_bytes": _spread(np.array(lengths)),
        "sizes": dict(sizes.most_common()),
        "jpeg_share": round(jpegs / len(samples), 4),
        "examined": len(samples),
        "property": stated,
        "shards": [_shard_facts(path) for path in dataset.paths],
        "fingerprint": dataset.fingerprint(),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _shard_facts(path: Path) -> dict[str, Any]:
    """File, bytes, and what a header record at the file's start states, if there is one."""
    reader = RecordReader(path)
    header, image = unpack_record(reader.read(0))
    facts: dict[str, Any] = {"file": path.name, "bytes": reader.size, "header": None}
    if header.flag >= 2 and not len(image):
        facts["header"] = {"identity_keys": [float(value) for value in header.labels]}
    return facts


def tables(facts: dict[str, Any]) -> str:
    """The facts as two tables for a person."""
    table = PrettyTable(["set", facts["root"]], align="l")
    for name in ("images", "classes", "identities_with_images"):
        table.add_row([name.replace("_", " "), f"{facts[name]:,}"])
    for name, title in (("images_per_identity", "images per identity"), ("encoded_bytes", "bytes per image")):
        spread = facts[name]
        table.add_row([f"{title} (min, median, max)", f"{spread['min']:,}, {spread['median']:,g}, {spread['max']:,}"])
    sizes = [f"{size} ({count:,})" for size, count in facts["sizes"].items()]
    more = f", and {len(sizes) - 5} other sizes" if len(sizes) > 5 else ""
    table.add_row([f"pixels (of {facts['examined']:,} examined)", ", ".join(sizes[:5]) + more])
    table.add_row(["JPEG", f"{100 * facts['jpeg_share']:g} %"])
    stated = ", ".join(f"{name}={value}" for name, value in facts["property"].items())
    table.add_row(["property states", stated or "nothing: no such file"])
    table.add_row(["fingerprint", facts["fingerprint"]])
    shards = PrettyTable(["shard", "bytes", "header record: identity keys"], align="l")
    for shard in facts["shards"]:
        header = shard["header"]
        keys = "none (im2rec layout)" if header is None else " to ".join(f"{key:g}" for key in header["identity_keys"])
        shards.add_row([shard["file"], f"{shard['bytes']:,}", keys])
    return f"{table}\n{shards}"


def contact_sheet(dataset: RecordDataset) -> np.ndarray:
    """Evenly spaced identities, one a row with its label and first images, as RGB uint8; what cannot be read is red."""
    present = np.unique(dataset.labels)
    labels = np.unique(present[np.linspace(0, len(present) - 1, _ROWS).astype(int)])
    sheet = np.full((_TILE * len(labels), _TILE * (_COLUMNS + 1), 3), 255, np.uint8)
    for row, label in enumerate(labels.tolist()):
        top = row * _TILE
        cv2.putText(sheet, str(label), (4, top + _TILE // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0))
        for column, sample in enumerate(np.flatnonzero(dataset.labels == label)[:_COLUMNS].tolist(), 1):
            tile = sheet[top : top + _TILE, column * _TILE : (column + 1) * _TILE]
            try:
                image = decode_rgb(dataset.encoded(sample))
                tile[:] = cv2.resize(image, (_TILE, _TILE), interpolation=cv2.INTER_AREA)
            except ImageError:
                tile[:] = (255, 0, 0)
    return sheet
