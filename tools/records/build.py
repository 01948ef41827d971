"""Build a RecordIO set from a folder per identity: shards, indices, lists, `property` and `labels.tsv`.

Deterministic: identities in the order of their folder names (by code point) get labels from 0, images follow in the
order of their file names, and the same source gives the same bytes whatever the number of threads. JPEG files are
copied byte for byte unless asked otherwise; each is decoded once all the same, so that none is written that cannot be
read. Everything is written under OUT/.building and renamed when it is complete, the indices last: an interrupted build
leaves nothing that opens. Proven by tests/tools/test_rec_builder.py.
"""

import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
from tqdm import tqdm

from recognition.data.dataset import open_dataset
from recognition.data.image_file import ImageError, decode_rgb, encode_jpeg, is_jpeg
from recognition.data.recordio import FLOAT32_WHOLE
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError, SettingsError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
DEFAULT_QUALITY = 95  # of images that must be encoded: the loss is invisible to the eye and to a network
DEFAULT_UNREADABLE_SHARE = 0.05
DEFAULT_UNREADABLE_IMAGES = 10  # so that one bad picture in a small trial folder stops nobody
_CHUNK = 32  # images a thread takes at once
_CHUNKS_WAITING = 256  # chunks done or under way: with images of 10 kB some 80 MB

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BuildSettings:
    """How to build. `resize` is the side in pixels, `quality` that of JPEG; None leaves JPEG files as they are."""

    shards: int = 1
    resize: int | None = None
    quality: int | None = None
    max_unreadable: float | None = None
    threads: int | None = None


class Source(NamedTuple):
    """What was found: identities as (folder name, file names), both sorted, and what was left aside, relative paths."""

    root: Path
    identities: list[tuple[str, list[str]]]
    ignored: list[str]

    @property
    def num_images(self) -> int:
        """The number of image files listed, readable or not."""
        return sum(len(files) for _, files in self.identities)


class Prepared(NamedTuple):
    """One image ready to be written, or the reason why it cannot be."""

    encoded: bytes
    size: tuple[int, int]
    fault: str | None


def list_source(root: Path) -> Source:
    """Find the identities of a folder; a DataError for a folder without images, which would be a class without any."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one folder per identity with its images")
    identities, ignored, empty = [], [], []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            ignored.append(entry.name)
            continue
        files = []
        for item in sorted(os.scandir(entry.path), key=lambda item: item.name):
            if item.name.startswith("."):
                continue
            if item.is_file() and item.name.lower().endswith(IMAGE_SUFFIXES):
                files.append(item.name)
            else:
                ignored.append(f"{entry.name}/{item.name}")
        for name in (entry.name, *files):
            if any(character in name for character in "\t\n\r"):
                raise DataError(f"{root / entry.name}: the name {name!r} has a tab or line end; lists cannot")
        if not files:
            empty.append(entry.name)
        identities.append((entry.name, files))
    if not identities:
        raise DataError(f"{root}: no folders in it; expected one folder per identity with its images")
    if empty:
        names = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        raise DataError(f"{root}: {len(empty)} identity folder(s) without images ({names}); remove them or fill them")
    return Source(root, identities, ignored)


def prepare_image(path: Path, settings: BuildSettings) -> Prepared:
    """Read, check, and where asked resize and encode one image."""
    try:
        encoded = path.read_bytes()
        image = decode_rgb(encoded)
    except OSError as error:
        return Prepared(b"", (0, 0), error.strerror or str(error))
    except ImageError as error:
        return Prepared(b"", (0, 0), str(error))
    encode = settings.quality is not None or not is_jpeg(encoded)
    if settings.resize is not None and image.shape[:2] != (settings.resize, settings.resize):
        shrinks = min(image.shape[:2]) >= settings.resize
        side = (settings.resize, settings.resize)
        image = cv2.resize(image, side, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        encode = True
    if encode:
        encoded = encode_jpeg(image, settings.quality or DEFAULT_QUALITY)
    return Prepared(encoded, (image.shape[0], image.shape[1]), None)


def build(source: Path, out: Path, settings: BuildSettings) -> dict[str, Any]:
    """Build the set in `out` and say what was done; DataError when too many images are unreadable."""
    found = list_source(source)
    _check_settings(found, out, settings)
    out.mkdir(parents=True, exist_ok=True)
    _check_target(out)
    building = out / ".building"
    shutil.rmtree(building, ignore_errors=True)  # of a build that was killed
    building.mkdir()
    try:
        report = _write_set(found, building, settings)
        _move_into_place(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {"source": str(source), "set": str(out), **report}


def _check_settings(found: Source, out: Path, settings: BuildSettings) -> None:
    total = found.num_images
    if out.resolve().is_relative_to(found.root.resolve()):
        raise SettingsError(f"{out} is inside the source {found.root}; the set must be written elsewhere")
    if not 1 <= settings.shards <= total:
        raise SettingsError(f"--shards {settings.shards}; expected 1 to {total}, the number of images")
    if total // settings.shards + 1 >= FLOAT32_WHOLE:
        least = total // (FLOAT32_WHOLE - 2) + 1
        raise SettingsError(f"--shards {settings.shards} for {total} images; keys are float32 in identity records, so "
                            f"expected at least {least} shards")


def _check_target(out: Path) -> None:
    if any(out.glob("*.rec")) and not (out / "labels.tsv").exists():
        raise DataError(f"{out}: holds .rec files that were not built here (no labels.tsv); give another folder")


class _SetWriter:
    """The shards of one set: images come in the source's order and go to shards of equal numbers of listed images.

    An identity gets its label when its first readable image comes, so that no class is without images.
    """

    def __init__(self, folder: Path, total: int, shards: int, label_base: int) -> None:
        self.folder, self.total, self.label_base = folder, total, label_base
        width = max(2, len(str(shards - 1)))
        self.stems = ["train"] if shards == 1 else [f"train_{number:0{width}d}" for number in range(shards)]
        self.names: list[str] = []  # of identities, by label
        self.size, self._size_of = (0, 0), ""
        self._number = 0
        self._shard = self._open()

    def _open(self) -> ShardWriter:
        return ShardWriter(self.folder / f"{self.stems[self._number]}.rec", self.label_base)

    def add(self, position: int, path: str, image: Prepared) -> None:
        """Write the image that is listed at a position; `path` is IDENTITY/FILE."""
        if not self._size_of:
            self.size, self._size_of = image.size, path
        if image.size != self.size:
            raise DataError(f"{path}: {_pixels(image.size)} pixels, but {self._size_of} has {_pixels(self.size)}; "
                            "a set has one size: --resize SIDE gives it one")
        identity = path.partition("/")[0]
        if not self.names or self.names[-1] != identity:
            self.names.append(identity)
        while self._number < position * len(self.stems) // self.total:
            self._next()
        self._shard.add(len(self.names) - 1, image.encoded, path)

    def _next(self) -> None:
        self._shard.close()
        self._number += 1
        self._shard = self._open()

    def close(self) -> None:
        """Finish all shards."""
        while self._number < len(self.stems) - 1:
            self._next()
        self._shard.close()

    def abandon(self) -> None:
        """Close what is open of a set that will not be finished."""
        self._shard.abandon()


def _write_set(found: Source, folder: Path, settings: BuildSettings) -> dict[str, Any]:
    """Write all files of the set into a folder, check them, and say what they are."""
    total = found.num_images
    label_base = FLOAT32_WHOLE if len(found.identities) > FLOAT32_WHOLE else 0
    writer = _SetWriter(folder, total, settings.shards, label_base)
    try:
        unreadable = _write_images(found, writer, settings)
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    if not writer.names:
        raise DataError(f"{found.root}: none of its {total} images can be read")
    _write_facts(folder, writer.names, writer.size, label_base, unreadable)
    dataset = open_dataset(folder)  # what was written is what a run will open: check it before it gets its name
    if dataset.num_images != total - len(unreadable) or dataset.num_classes != len(writer.names):
        raise DataError(f"{folder}: wrote {total - len(unreadable)} images, found {dataset.num_images} on reading back")
    return {
        "images": dataset.num_images, "identities": len(writer.names),
        "height": writer.size[0], "width": writer.size[1],
        "shards": settings.shards, "bytes": sum((folder / f"{stem}.rec").stat().st_size for stem in writer.stems),
        "fingerprint": dataset.fingerprint(),
        "unreadable": [{"path": path, "reason": reason} for path, reason in unreadable], "ignored": found.ignored,
        "identities_without_readable_image": len(found.identities) - len(writer.names),
    }


def _write_images(found: Source, writer: _SetWriter, settings: BuildSettings) -> list[tuple[str, str]]:
    """Read, check and write all images; returns (path, reason) of those that cannot be read."""
    unreadable: list[tuple[str, str]] = []
    paths = (f"{name}/{file}" for name, files in found.identities for file in files)
    bar = tqdm(total=found.num_images, unit=" images", disable=None)
    with ThreadPoolExecutor(settings.threads or os.cpu_count()) as pool, bar:
        try:
            prepared = in_order(pool, lambda path: prepare_image(found.root / path, settings), paths)
            for position, (path, image) in enumerate(prepared):
                bar.update()
                if image.fault is None:
                    writer.add(position, path, image)
                    continue
                unreadable.append((path, image.fault))
                tqdm.write(f"unreadable: {found.root / path}: {image.fault}", file=sys.stderr)
                _check_share(found, len(unreadable), settings.max_unreadable)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or leaving the block would first do all the work
            raise
    return unreadable


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)) in the items' order, computed by the pool, with a bounded number of results waiting."""
    items = iter(items)
    waiting: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    while chunk := list(islice(items, _CHUNK)):
        waiting.append((chunk, pool.submit(lambda chunk: [function(item) for item in chunk], chunk)))
        if len(waiting) > _CHUNKS_WAITING:
            done, future = waiting.popleft()
            yield from zip(done, future.result(), strict=True)
    for done, future in waiting:
        yield from zip(done, future.result(), strict=True)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"


def _check_share(found: Source, count: int, share: float | None) -> None:
    total = found.num_images
    allowed = int(share * total) if share is not None else max(
        DEFAULT_UNREADABLE_IMAGES, int(DEFAULT_UNREADABLE_SHARE * total))
    if count > allowed:
        raise DataError(f"{found.root}: {count} of {total} images unreadable so far, more than the {allowed} allowed "
                        "(--max-unreadable SHARE); nothing was written")


def _write_facts(
    folder: Path, names: list[str], size: tuple[int, int], label_base: int, unreadable: list[tuple[str, str]]
) -> None:
    def write(name: str, lines: Iterable[str]) -> None:
        with open(folder / name, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)

    write("labels.tsv", (f"{label}\t{name}" for label, name in enumerate(names)))
    write("property", [f"{len(names)},{size[0]},{size[1]}", *([f"label_base={label_base}"] if label_base else [])])
    if unreadable:
        write("unreadable.tsv", (f"{path}\t{reason}" for path, reason in unreadable))


def _move_into_place(building: Path, out: Path) -> None:
    """Replace an earlier set: its indices go first and the new ones come last, so that no mixture ever opens."""
    stale = [out / "unreadable.tsv"]
    for path in out.glob("train*.rec"):
        path.with_suffix(".idx").unlink(missing_ok=True)
        stale += [path, path.with_suffix(".lst"), path.with_suffix(".crc")]
    for path in stale:
        path.unlink(missing_ok=True)
    for path in sorted(building.iterdir(), key=lambda path: (path.suffix == ".idx", path.name)):
        path.replace(out / path.name)
