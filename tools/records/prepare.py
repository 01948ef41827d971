"""One picture of a source → the encoded image of a record, or the reason why there is none.

Every picture is decoded once, so that none is written that cannot be read. A JPEG of the right size is copied byte for
byte unless asked otherwise; other formats are encoded as JPEG, or copied with `keep_encoding` (PNG, BMP and WebP are
read by both loaders). Aligned and resized pictures are always encoded. Proven by tests/tools/records/test_build.py.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recognition.data.align import SIZE, align_face
from recognition.data.face_detector import MIN_SCORE, FaceDetector
from recognition.data.image_file import OF_THE_PICTURE, ImageError, decode_rgb, encode_jpeg, is_jpeg, resized
from recognition.errors import DataError
from tools.records.sources.source import Reader

DEFAULT_QUALITY = 95  # of images that must be encoded: the loss is invisible to the eye and to a network
UNREADABLE, WITHOUT_FACE = "unreadable", "without_face"


@dataclass(frozen=True)
class PictureSettings:
    """What to do with pictures. `size` is the side in pixels of the set's; `align` uses landmarks that are known and
    `detect` a model that finds them; None of `quality` leaves JPEG as it is.
    """

    size: int = SIZE
    resize: bool = False
    align: bool = False
    detect: Path | None = None
    min_score: float = MIN_SCORE
    quality: int | None = None
    keep_encoding: bool = False


class Task(NamedTuple):
    """A picture to prepare: its name, its place in an archive, its landmarks float32 [5, 2] where known."""

    name: str
    place: tuple[int, ...] | None
    landmarks: np.ndarray | None


class Prepared(NamedTuple):
    """An image ready to be written, or `fault`, of a `kind`, instead. `was` is the format that it was encoded from,
    empty for a copy; `digest` 8 bytes; `landmarks` and `score` those of a face that was found.
    """

    encoded: bytes = b""
    digest: bytes = b""
    was: str = ""
    kind: str = ""
    fault: str = ""
    landmarks: np.ndarray | None = None
    score: float = 0.0


class Preparer:
    """Prepares pictures of one source; one for each process."""

    def __init__(self, reader: Reader, settings: PictureSettings) -> None:
        self.reader, self.settings = reader, settings
        self._detector = FaceDetector(settings.detect, settings.min_score) if settings.detect else None

    def __call__(self, task: Task) -> Prepared:
        """Read, check, align or resize, and encode one picture; a DataError where its source, not it, is at fault."""
        try:
            encoded = self.reader.read(task.name, task.place)
            image = decode_rgb(encoded)
        except OSError as error:
            if error.errno not in OF_THE_PICTURE:
                raise DataError(f"{task.name}: {error.strerror}: reading failed, which says nothing about the picture; "
                                "the same command goes on") from error
            return Prepared(kind=UNREADABLE, fault=error.strerror or str(error))
        except ValueError as error:  # ImageError is one
            return Prepared(kind=UNREADABLE, fault=str(error))
        settings, face = self.settings, None
        anew = settings.quality is not None or not (settings.keep_encoding or is_jpeg(encoded))
        if settings.align or settings.detect:
            landmarks = task.landmarks
            if landmarks is None or np.isnan(landmarks).any():
                if self._detector is None:
                    return Prepared(kind=WITHOUT_FACE, fault="no landmarks of it are listed")
                if (face := self._detector.find(image)) is None:
                    return Prepared(kind=WITHOUT_FACE, fault="no face was found")
                landmarks = face.landmarks
            try:
                image, anew = align_face(image, landmarks), True
            except ValueError as error:
                return Prepared(kind=WITHOUT_FACE, fault=str(error))
        elif image.shape[:2] != (settings.size, settings.size):
            if not settings.resize:
                size = f"{image.shape[1]}×{image.shape[0]} pixels; expected {settings.size}×{settings.size}"
                return Prepared(kind=UNREADABLE, fault=size)
            image, anew = resized(image, settings.size), True
        was = _format(encoded) if anew else ""
        try:
            encoded = encode_jpeg(image, settings.quality or DEFAULT_QUALITY) if anew else encoded
        except ImageError as error:
            return Prepared(kind=UNREADABLE, fault=str(error))
        digest = hashlib.blake2b(encoded, digest_size=8).digest()
        found = (face.landmarks, face.score) if face else (None, 0.0)
        return Prepared(encoded, digest, was, "", "", *found)


def _format(encoded: bytes) -> str:
    return {b"\xff\xd8": "jpeg", b"\x89P": "png", b"BM": "bmp"}.get(encoded[:2], "webp")
