"""Build a RecordIO set from pictures: shards, indices, lists, `property`, `labels.tsv`, and what was left out.

Deterministic: identities in natural order of their names get labels from 0, and the same source gives the same bytes
whatever the number of processes. Everything is written under OUT/.building and renamed when it is complete, the indices
last. A build that was interrupted or killed, run again, goes on from the last state on disk (`progress.json`, written
every few seconds after what it speaks of) and ends with the same bytes; changed settings or a changed source begin
anew. Proven by tests/tools/records/test_build.py and test_resume.py.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from recognition.data.align import SIZE
from recognition.data.dataset import open_dataset
from recognition.data.recordio import FLOAT32_WHOLE
from recognition.errors import DataError, SettingsError
from tools.records.building_folder import alone, is_shard, move_into_place, read_progress, remove_old, write_progress
from tools.records.prepare import PictureSettings, Prepared, Task
from tools.records.set_writer import SetWriter, ShardSettings, State
from tools.records.sources import Source, open_source
from tools.records.sources.landmarks import read_landmarks
from tools.records.workers import preparing

DEFAULT_UNREADABLE_SHARE = 0.05
DEFAULT_UNREADABLE_IMAGES = 10  # so that one bad picture in a small trial folder stops nobody
SYNC_SECONDS = 5.0
_LOG_SECONDS = 60.0
_SHOWN = 20  # of what is left out


@dataclass(frozen=True)
class BuildSettings:
    """How to build: pictures, shards, and whatever does not change what is written."""

    picture: PictureSettings = field(default_factory=PictureSettings)
    shard: ShardSettings = field(default_factory=ShardSettings)
    images: Path | None = None
    landmarks: Path | None = None
    max_unreadable: float | None = None
    workers: int | None = None


def build(path: Path, out: Path, settings: BuildSettings) -> dict[str, Any]:
    """Build the set in `out` and say what was done; DataError when too many images are unreadable."""
    _check_settings(path, out, settings)
    building = out / ".building"
    with alone(out, building):
        source = _open(path, building, settings)
        settings = _with_alignment(settings, source)
        _check_shards(source, settings)
        key = _fingerprint(source, settings)
        progress = read_progress(building, key)
        if progress.get("stage") != "moving":
            if "report" not in progress:
                progress["report"] = _write_set(source, building, settings, progress, key)
                write_progress(building, {"key": key, "stage": "built", "report": progress["report"]})
            remove_old(out)
            write_progress(building, {"key": key, "stage": "moving", "report": progress["report"]})
        move_into_place(building, out)
    shutil.rmtree(building)
    return {"source": str(path), "set": str(out), **progress["report"]}


def _check_settings(path: Path, out: Path, settings: BuildSettings) -> None:
    picture = settings.picture
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise SettingsError(f"{out} is inside the source {path}; the set must be written elsewhere")
    if (picture.align or picture.detect) and picture.size != SIZE:
        raise SettingsError(f"--size {picture.size}; aligned faces have {SIZE}×{SIZE} pixels")
    if (picture.align or picture.detect) and picture.resize:
        raise SettingsError("--resize with --align or --detect: aligned faces are not resized; give one of them")
    if picture.detect and not picture.detect.is_file():
        raise SettingsError(f"--detect {picture.detect}: no such file; expected a YuNet model in ONNX")
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: not a folder; give the name of a new one for the set")
    files = [entry.name for entry in os.scandir(out) if entry.name != ".building"]
    if files and not (out / "labels.tsv").exists():
        raise DataError(f"{out}: holds files, and no set that was built here (no labels.tsv); give another folder")
    foreign = sorted(path.name for path in out.glob("*.rec") if not is_shard(path))
    if foreign and (settings.shard.shards > 1 or settings.shard.max_bytes is not None):
        raise DataError(f"{out}: holds {foreign[0]}, which no build wrote; training would take it for a shard of the "
                        "set: move it away")


def _open(path: Path, building: Path, settings: BuildSettings) -> Source:
    """The source with landmarks, less the identities that list too few images."""
    source = open_source(path, settings.images, building)
    if settings.landmarks is not None:
        source = replace(source, landmarks=read_landmarks(settings.landmarks, source.names))
    least = settings.shard.min_images
    few = np.bincount(source.identity, minlength=len(source.identities)) < least
    if few.all():
        raise DataError(f"{path}: no identity has {least} images (--min-images)")
    return source.without(few) if few.any() else source


def _with_alignment(settings: BuildSettings, source: Source) -> BuildSettings:
    """Landmarks that a list brings are used without being asked for; without any, a list is of aligned pictures."""
    listed = source.landmarks is not None and bool(np.isfinite(source.landmarks).any())
    if settings.picture.detect or not listed:
        return settings
    return replace(settings, picture=replace(settings.picture, align=True))


def _check_shards(source: Source, settings: BuildSettings) -> None:
    total, shards = len(source), settings.shard.shards
    if not 1 <= shards <= total:
        raise SettingsError(f"--shards {shards}; expected 1 to {total}, the number of images")
    if settings.shard.max_bytes is None and total // shards + 1 >= FLOAT32_WHOLE:
        least = total // (FLOAT32_WHOLE - 2) + 1
        raise SettingsError(f"--shards {shards} for {total} images; keys are float32 in identity records, so "
                            f"expected at least {least} shards")


def _fingerprint(source: Source, settings: BuildSettings) -> str:
    """What must be the same for an interrupted build to go on: source, settings, and the encoder."""
    told = {**asdict(settings.picture), **asdict(settings.shard), "opencv": cv2.__version__}
    if settings.picture.detect:
        told["detect"] = hashlib.blake2b(settings.picture.detect.read_bytes()).hexdigest()
    text = json.dumps(told, sort_keys=True, default=str) + source.fingerprint()
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_set(
    source: Source, folder: Path, settings: BuildSettings, progress: dict[str, Any], key: str
) -> dict[str, Any]:
    """Write all files of the set into a folder, check them, and say what they are."""
    state = State(**progress["state"]) if "state" in progress else None
    writer = SetWriter(folder, source.identities, len(source), settings.shard, state)
    began = writer.state.position
    try:
        _write_images(source, writer, settings, key)
    except BaseException as error:
        writer.abandon()
        if isinstance(error, KeyboardInterrupt):
            print(f"interrupted at image {writer.state.position}; the same command goes on", file=sys.stderr)
        raise
    writer.close()
    if not writer.state.images:
        raise DataError(f"{source.root}: none of its {len(source)} images can be used{_first_fault(folder)}")
    return _finish(source, folder, settings, writer, began)


def _finish(
    source: Source, folder: Path, settings: BuildSettings, writer: SetWriter, began: int
) -> dict[str, Any]:
    """Write `property`, read the set back as a run will, and report."""
    state, size = writer.state, settings.picture.size
    lines = [f"{state.labels},{size},{size}", *([f"label_base={writer.label_base}"] if writer.label_base else [])]
    (folder / "property").write_text("".join(f"{line}\n" for line in lines))
    shards, repeated = writer.shards(), writer.repeated()
    for shard in shards:
        (folder / shard["file"]).with_suffix(".log").unlink()
    # What was written is what a run will open: check it before it gets its name, and spare the first start the same.
    dataset = open_dataset(folder, sidecar="write")
    if dataset.num_images != state.images or dataset.num_classes != state.labels:
        raise DataError(f"{folder}: wrote {state.images} images, found {dataset.num_images} on reading back")
    named = all(name == str(label) for label, name in enumerate(source.identities))
    return {
        "kind": source.kind, "images": state.images, "identities": state.labels, "height": size, "width": size,
        "labels": "kept" if named and state.labels == len(source.identities) else "numbered, see labels.tsv",
        "shards": len(shards), "shard_files": shards, "bytes": sum(shard["bytes"] for shard in shards),
        "fingerprint": dataset.fingerprint(), "copied": state.copied, "encoded": state.encoded,
        "unreadable": _faults(folder / "unreadable.tsv"), "without_face": _faults(folder / "without_face.tsv"),
        "identities_without_readable_image": len(source.identities) - state.labels - state.identities_below,
        "identities_below_min_images": state.identities_below, "images_below_min_images": state.images_below,
        "repeated_under_other_labels": repeated, "ignored": source.ignored, "notes": source.notes, "went_on_at": began,
    }


def _faults(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    lines = path.read_text("utf-8", "surrogateescape").split("\n")[:-1]
    return [dict(zip(("path", "reason"), line.split("\t", 1), strict=True)) for line in lines]


def _first_fault(folder: Path) -> str:
    faults = _faults(folder / "unreadable.tsv") or _faults(folder / "without_face.tsv")
    return f"; {faults[0]['path']}: {faults[0]['reason']}{_hint(faults[0]['reason'])}" if faults else ""


def _hint(fault: str) -> str:
    """What to do about pictures that are not of the set's size."""
    return " (--detect MODEL or --align LANDMARKS make training images of ordinary pictures, --resize only changes " \
        "their size)" if "pixels; expected" in fault else ""


def _write_images(source: Source, writer: SetWriter, settings: BuildSettings, key: str) -> None:
    """Prepare and write all images from the writer's state on, and keep the state on disk."""
    began = writer.state.position
    bar = tqdm(total=len(source), initial=began, unit=" images", disable=None, smoothing=0.05)
    synced = logged = started = time.monotonic()
    with bar, preparing(source, settings.picture, settings.workers, len(source) - began) as prepared:
        for position, (task, image) in enumerate(prepared(_tasks(source, began)), began):
            bar.update()
            writer.add(position, task.name, int(source.identity[position]), image)
            if image.kind:
                _say(writer.state.unreadable + writer.state.without_face, task.name, image)
                _check_share(source, writer.state.unreadable, settings.max_unreadable, image)
            now = time.monotonic()
            if now - synced >= SYNC_SECONDS and (state := writer.sync()):
                write_progress(writer.folder, {"key": key, "state": state})
                synced = time.monotonic()
            if bar.disable and now - logged >= _LOG_SECONDS:
                logged = now
                _log(position + 1, len(source), (position + 1 - began) / (now - started))


def _say(count: int, name: str, image: Prepared) -> None:
    """Name what is left out, without flooding the screen."""
    if count <= _SHOWN:
        more = " (more are in unreadable.tsv and without_face.tsv of the set)" if count == _SHOWN else ""
        tqdm.write(f"left out: {name}: {image.fault}{more}", file=sys.stderr)


def _tasks(source: Source, began: int) -> Iterator[Task]:
    for row in range(began, len(source)):
        place = None if source.places is None else tuple(source.places[row].tolist())
        yield Task(source.names[row], place, None if source.landmarks is None else source.landmarks[row])


def _log(done: int, total: int, rate: float) -> None:
    """What the progress bar would say, for those who keep a log instead."""
    left = (total - done) / rate
    print(f"{done:,} of {total:,} images, {rate:,.0f} images/s, {left / 60:,.0f} min left", file=sys.stderr)


def _check_share(source: Source, count: int, share: float | None, image: Prepared) -> None:
    total = len(source)
    allowed = int(share * total) if share is not None else max(
        DEFAULT_UNREADABLE_IMAGES, int(DEFAULT_UNREADABLE_SHARE * total))
    if count > allowed:
        raise DataError(f"{source.root}: {count} of {total} images unreadable so far, more than the {allowed} allowed "
                        f"(--max-unreadable SHARE); the last one: {image.fault}{_hint(image.fault)}")
