"""The files of one set while it is being built: shards in order, names of labels, what was left out, and the state to
go on from.

Pictures come in the source's order. An identity gets its label when enough of its pictures are there (`min_images`),
so that no class is without images and labels have no gap. Shards have equal numbers of listed pictures, or at most so
many bytes. Proven by tests/tools/records/test_build.py and test_resume.py.
"""

from dataclasses import asdict, dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from recognition.data.recordio import FLOAT32_WHOLE
from tools.records.prepare import UNREADABLE, WITHOUT_FACE, Prepared
from tools.records.resumable_shard import IDENTITY_BYTES, LOG, ResumableShard, continued, sync

LANDMARKS = "landmarks.csv"
_TEXTS = ("labels.tsv", "unreadable.tsv", "without_face.tsv", LANDMARKS)
_BESIDE = 48 + IDENTITY_BYTES  # what an image adds to a shard beside its own bytes, at most


@dataclass(frozen=True)
class ShardSettings:
    """`shards` files of equal numbers of listed images, or, where `max_bytes` is given, files of at most so many."""

    shards: int = 1
    max_bytes: int | None = None
    min_images: int = 1


@dataclass
class State:
    """What a writer knows beside its files. `position` is the row of the source that comes next."""

    position: int = 0
    shard: int = 0
    labels: int = 0
    identity: int = -1  # of the last image written; its label is labels − 1
    images: int = 0
    copied: int = 0
    encoded: dict[str, int] = field(default_factory=dict)  # format that it was → images
    unreadable: int = 0
    without_face: int = 0
    identities_below: int = 0
    images_below: int = 0
    sizes: dict[str, int] = field(default_factory=dict)


class SetWriter:
    """Writes pictures in order into a folder; `state` is that of a build to go on with."""

    def __init__(
        self, folder: Path, identities: list[str], total: int, settings: ShardSettings, state: State | None = None
    ) -> None:
        self.folder, self.identities, self.total, self.settings = folder, identities, total, settings
        self.label_base = FLOAT32_WHOLE if len(identities) > FLOAT32_WHOLE else 0
        self.state = state or State()
        self._held: list[tuple[int, str, Prepared]] = []  # images of an identity that may turn out to have too few
        self._held_of = -1
        sizes = self.state.sizes if state else {}
        self._texts: dict[str, BufferedWriter] = {name: self._text(folder / name, sizes.get(name)) for name in _TEXTS}
        suffixes = {suffix: sizes[suffix] for suffix in (".rec", ".lst", ".log")} if state else None
        self._shard = self._open(suffixes)

    @staticmethod
    def _text(path: Path, size: int | None) -> BufferedWriter:
        return open(path, "wb") if size is None else continued(path, size)

    def stem(self, number: int) -> str:
        """The name of a shard, less its suffix."""
        if self.settings.max_bytes is not None:
            return f"train_{number:04d}"
        width = max(2, len(str(self.settings.shards - 1)))
        return "train" if self.settings.shards == 1 else f"train_{number:0{width}d}"

    def _open(self, sizes: dict[str, int] | None = None) -> ResumableShard:
        return ResumableShard(self.folder / f"{self.stem(self.state.shard)}.rec", self.label_base, sizes)

    def add(self, position: int, name: str, identity: int, image: Prepared) -> None:
        """Write the image that is listed at a position, hold it until its identity has enough, or note its fault."""
        self.state.position = position + 1
        if identity not in (self._held_of, self.state.identity):
            self._drop_held()
        if image.kind:
            self._note(name, image)
        elif identity == self.state.identity:
            self._write(position, name, image)
        else:
            self._held_of = identity
            self._held.append((position, name, image))
            if len(self._held) >= self.settings.min_images:
                self._name(identity)
                for held in self._held:
                    self._write(*held)
                self._held = []

    def _note(self, name: str, image: Prepared) -> None:
        self._line(f"{image.kind}.tsv", f"{name}\t{image.fault}")
        self.state.unreadable += image.kind == UNREADABLE
        self.state.without_face += image.kind == WITHOUT_FACE

    def _drop_held(self) -> None:
        if self._held:
            self.state.identities_below += 1
            self.state.images_below += len(self._held)
            self._held = []

    def _name(self, identity: int) -> None:
        self._line("labels.tsv", f"{self.state.labels}\t{self.identities[identity]}")
        self.state.labels += 1
        self.state.identity = identity

    def _line(self, file: str, text: str) -> None:
        self._texts[file].write(f"{text}\n".encode("utf-8", "surrogateescape"))

    def _write(self, position: int, name: str, image: Prepared) -> None:
        if self.settings.max_bytes is None:
            while self.state.shard < position * self.settings.shards // self.total:
                self._next()
        elif self._shard.num_images and (self._shard.size + len(image.encoded) + _BESIDE > self.settings.max_bytes
                                         or self._shard.num_images >= FLOAT32_WHOLE - 2):
            self._next()
        self._shard.add_logged(self.state.labels - 1, image.encoded, name, image.digest)
        self.state.images += 1
        if image.was:
            self.state.encoded[image.was] = self.state.encoded.get(image.was, 0) + 1
        else:
            self.state.copied += 1
        if image.landmarks is not None:
            quoted = '"' + name.replace('"', '""') + '"' if any(sign in name for sign in ',"') else name
            points = ",".join(f"{value:.2f}" for value in image.landmarks.ravel().tolist())
            if not self._texts[LANDMARKS].tell():
                self._line(LANDMARKS, "path," + ",".join(f"x{n},y{n}" for n in range(1, 6)) + ",score")
            self._line(LANDMARKS, f"{quoted},{points},{image.score:.4f}")

    def _next(self) -> None:
        self._shard.close()
        self.state.shard += 1
        self._shard = self._open()

    def sync(self) -> dict[str, Any] | None:
        """Bring all to the disk and say the state to go on from; None while images are held back."""
        if self._held:
            return None
        sizes = self._shard.sync()
        self.state.sizes = {**sizes, **{name: sync(file) for name, file in self._texts.items()}}
        return asdict(self.state)

    def close(self) -> None:
        """Finish all files."""
        self._drop_held()
        while self.settings.max_bytes is None and self.state.shard < self.settings.shards - 1:
            self._next()
        self._shard.close()
        for name, file in self._texts.items():
            file.close()
            if name != "labels.tsv" and not (self.folder / name).stat().st_size:
                (self.folder / name).unlink()

    def abandon(self) -> None:
        """Close the files of a set that is not finished."""
        self._shard.abandon()
        for file in self._texts.values():
            file.close()

    def shards(self) -> list[dict[str, Any]]:
        """The finished shards: name, images, and bytes of the .rec file."""
        facts = []
        for number in range(self.state.shard + 1):
            path = self.folder / f"{self.stem(number)}.rec"
            images = path.with_suffix(".log").stat().st_size // LOG.itemsize
            facts.append({"file": path.name, "images": images, "bytes": path.stat().st_size})
        return facts

    def repeated(self, most: int = 20) -> dict[str, Any]:
        """Images whose very bytes stand under several labels: {images, groups, examples: at most `most` of
        [name, name]}; by an 8-byte hash.
        """
        logs = [np.fromfile((self.folder / f"{self.stem(number)}.rec").with_suffix(".log"), LOG)
                for number in range(self.state.shard + 1)]
        digests, labels = (np.concatenate([log[part] for log in logs]) for part in ("digest", "label"))
        order = np.argsort(digests, kind="stable")
        same = digests[order][1:] == digests[order][:-1]
        group = np.concatenate([[0], np.cumsum(~same)]) if len(order) else np.empty(0, np.int64)
        differs = same & (labels[order][1:] != labels[order][:-1])  # stable: labels rise within a group
        groups = np.unique(group[1:][differs]) if len(order) else group
        images = int(np.isin(group, groups).sum())
        at = np.flatnonzero(differs)[:most]
        rows = [(int(order[row]), int(order[row + 1])) for row in at]
        names = self._names({row for pair in rows for row in pair})
        return {"images": images, "groups": len(groups), "examples": [[names[a], names[b]] for a, b in rows]}

    def _names(self, wanted: set[int]) -> dict[int, str]:
        """Names of some images, by their number in the set, out of the lists."""
        names: dict[int, str] = {}
        number = 0
        for shard in range(self.state.shard + 1 if wanted else 0):
            path = self.folder / f"{self.stem(shard)}.lst"
            with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                for line in file:
                    if number in wanted:
                        names[number] = line.rstrip("\n").split("\t")[2]
                    number += 1
        return names
