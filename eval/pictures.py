"""Pictures by number, from a folder of any depth or a RecordIO set, and how each becomes an aligned face.

Owns what is a face here: a picture of 112×112 pixels, or with a detector the largest central face of any picture, or
with `resize` the whole of it. A picture that is none, cut, or without a face is a DataError that says so, and the
caller goes on; a picture of another size is a SettingsError, since all of the folder will be; a disk that fails is a
ReadingError, which says nothing about the picture. Proven by tests/eval/test_embed_command.py.
"""

import os
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from eval.pixels import IMAGE_SIZE
from eval.verification_sets import ENDINGS
from recognition.data.align import align_face
from recognition.data.dataset import RecordDataset, open_dataset
from recognition.data.face_detector import FaceDetector
from recognition.data.image_file import OF_THE_PICTURE, decode_rgb, resized
from recognition.errors import DataError, SettingsError, TrainerError


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


class FolderPictures:
    """Picture files of a folder and those below it, by name; hidden ones are passed over."""

    labels: np.ndarray | None = None

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: list[str] = []
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = "" if Path(folder) == root else f"{Path(folder).relative_to(root).as_posix()}/"
            self._names += [below + name for name in sorted(files)
                            if name.lower().endswith(ENDINGS) and not name.startswith(".")]
        if not self._names:
            raise DataError(f"{root}: no pictures in it or below ({', '.join(ENDINGS)}), and no .rec file")

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
    """A .rec file or a folder with one is a set, another folder holds pictures; DataError without any."""
    if path.is_file() or any(path.glob("*.rec")):
        return SetPictures(open_dataset(path))
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or file; expected a folder of pictures, or a RecordIO set")
    return FolderPictures(path)


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
            return self._face(name, decode_rgb(pictures.read(number)))
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno not in OF_THE_PICTURE:
                raise ReadingError(f"{name}: {reason}: reading failed, which says nothing about the picture") from error
            raise DataError(f"{name}: {reason}") from None
        except ValueError as error:  # ImageError is one
            raise DataError(f"{name}: {error}") from None

    def _face(self, name: str, image: np.ndarray) -> np.ndarray:
        if self._idle is not None:
            detector = self._idle.get()
            try:
                face = detector.find(image)
            finally:
                self._idle.put(detector)
            if face is None:
                raise ValueError("no face was found")
            return align_face(image, face.landmarks)
        height, width = image.shape[:2]
        if (height, width) == (IMAGE_SIZE, IMAGE_SIZE):
            return image
        if self._resize:
            return resized(image, IMAGE_SIZE)
        raise SettingsError(
            f"{name}: {width}×{height} pixels; expected aligned faces of {IMAGE_SIZE}×{IMAGE_SIZE}. --detect YUNET.onnx"
            " finds and aligns the face of ordinary photos, --resize takes whole pictures of any size"
        )
