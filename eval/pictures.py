"""Pictures by number, from a folder of any depth or a RecordIO set, and how each becomes an aligned face.

Owns what is a face here: a picture of 112×112 pixels, or with a detector the largest central face of any picture, or
with `resize` the whole of it. A picture that is none, cut, without a face or of another size (OtherSizeError) is a
DataError that says so, and the caller goes on; a disk that fails is a ReadingError, which says nothing about the
picture. Proven by tests/eval/test_embed_command.py.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from eval.pixels import IMAGE_SIZE
from eval.verification_sets import ENDINGS
from recognition.data.align import align_face
from recognition.data.dataset import RecordDataset, open_dataset
from recognition.data.face_detector import FaceDetector
from recognition.data.image_file import OF_THE_PICTURE, decode_rgb, image_size, resized
from recognition.errors import DataError, SettingsError, TrainerError

# Names of pictures, too. What they hold decides: a .jfif is a JPEG, a .tif is left out, and counted.
OTHER_ENDINGS = (".jfif", ".jpe", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".ppm")
SIZE_HINT = ("--detect YUNET.onnx finds and aligns the face of ordinary photos, --resize takes whole pictures of any "
             "size")


class OtherSizeError(DataError):
    """A picture that is no aligned face by its size. Where none of them is, SIZE_HINT tells what to do."""


class ReadingError(TrainerError):
    """A disk or server that fails, or too little memory."""

    status = DataError.status


class Pictures(Protocol):
    """Encoded pictures 0 … len − 1; labels: of all of them, where they have any."""

    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """What a picture is called in what is written."""

    def read(self, number: int) -> bytes | np.ndarray:
        """A picture's bytes; OSError or DataError."""


class FilePictures:
    """Picture files, by their paths from a folder."""

    labels: np.ndarray | None = None

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root, self._names = root, names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int) -> str:
        """The path from the folder; bytes that are no UTF-8 are shown as such."""
        return self._names[number].encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def read(self, number: int) -> bytes:
        """The file."""
        return (self._root / self._names[number]).read_bytes()


class SetPictures:
    """The samples of a RecordIO set, called FILE.rec:KEY by their keys in the index."""

    def __init__(self, dataset: RecordDataset) -> None:
        self._dataset = dataset
        self.labels: np.ndarray | None = dataset.labels

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, number: int) -> str:
        """The shard's name and the record's key."""
        path, key, _ = self._dataset.place(number)
        return f"{path.name}:{key}"

    def read(self, number: int) -> np.ndarray:
        """The record's image."""
        return self._dataset.encoded(number)


def open_pictures(path: Path) -> Pictures:
    """A .rec file or a folder with one is a set, another folder holds pictures, a file may be one; DataError if not."""
    if path.is_dir():
        return SetPictures(open_dataset(path)) if any(path.glob("*.rec")) else _below(path)
    if not path.is_file():
        raise DataError(f"{path}: no such folder or file; expected pictures or a RecordIO set")
    if path.name.lower().endswith(ENDINGS + OTHER_ENDINGS):
        return FilePictures(path.parent, [path.name])
    if path.suffix != ".rec":
        raise DataError(f"{path}: expected a folder of pictures, a picture ({', '.join(ENDINGS)}) or a RecordIO set's "
                        ".rec file")
    return SetPictures(open_dataset(path))


def _below(root: Path) -> FilePictures:
    """The pictures of a folder and those below it, by name; hidden ones are passed over."""
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = "" if Path(folder) == root else f"{Path(folder).relative_to(root).as_posix()}/"
        names += [below + name for name in sorted(files)
                  if name.lower().endswith(ENDINGS + OTHER_ENDINGS) and not name.startswith(".")]
    if not names:
        raise DataError(f"{root}: no pictures in it or below ({', '.join(ENDINGS)}), and no .rec file")
    return FilePictures(root, names)


class FaceMaker:
    """From encoded pictures to aligned faces, for as many threads as there are detectors.

    detector: a YuNet model in ONNX, or None.  resize: take whole pictures of any size.
    SettingsError when both are asked for, or the model is none.
    """

    def __init__(self, detector: Path | None = None, resize: bool = False, threads: int = 1) -> None:
        if detector is not None and resize:
            raise SettingsError("--detect crops the face that it finds, --resize takes the whole picture: choose one")
        self._resize = resize
        self._idle: SimpleQueue[FaceDetector] | None = None if detector is None else SimpleQueue()
        for _ in range(threads if self._idle is not None else 0):  # each is for one thread at a time
            assert self._idle is not None
            assert detector is not None
            self._idle.put(FaceDetector(detector))

    def __call__(self, pictures: Pictures, number: int) -> np.ndarray:
        """RGB uint8 [112, 112, 3] of a picture; the errors of this file's first paragraph."""
        name = pictures.name(number)
        try:
            return self._face(name, pictures.read(number))
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno not in OF_THE_PICTURE:
                raise ReadingError(f"{name}: {reason}: reading failed, which says nothing about the picture") from error
            raise DataError(f"{name}: {reason}") from None
        except ValueError as error:  # ImageError is one
            raise DataError(f"{name}: {error}") from None

    def _face(self, name: str, encoded: bytes | np.ndarray) -> np.ndarray:
        if self._idle is None and not self._resize:
            height, width = image_size(encoded)  # by its header: thousands of photos are refused in no time
            if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
                raise OtherSizeError(f"{name}: {width}×{height} pixels; expected aligned faces of "
                                     f"{IMAGE_SIZE}×{IMAGE_SIZE}")
        image = decode_rgb(encoded)
        if self._idle is not None:
            detector = self._idle.get()
            try:
                face = detector.find(image)
            finally:
                self._idle.put(detector)
            if face is None:
                raise ValueError("no face was found")
            return align_face(image, face.landmarks)
        return resized(image, IMAGE_SIZE) if self._resize else image
