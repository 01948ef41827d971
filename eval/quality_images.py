"""The images that eval/quality.py looks at: a draw from a set, and all of two people.

Owns which images these are: functions of the set alone, so that models are compared on the same ones.
Proven by tests/eval/test_quality.py.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.embed import IMAGE_SIZE
from eval.verification import decode_face, load_bin
from recognition.data.dataset import RecordDataset, open_dataset
from recognition.data.image_file import ImageError
from recognition.errors import DataError
from recognition.streams import stream_key

SUBJECTS = 2  # the paper's
LEAST_OF_SUBJECT, MOST_OF_SUBJECT = 10, 100

_SUBSET = 0x7175616C697479  # keeps this draw apart from others


@dataclass(frozen=True)
class ImageSet:
    """Images drawn from a set of `total`.

    names: where each stands, for errors.  numbers: in the set, int64 [N].  labels int64 [N], num_classes,
    fingerprint: of a RecordIO set; a run knows its own training set by the last.
    """

    path: str
    images: np.ndarray  # uint8 RGB [N, 112, 112, 3]
    names: list[str]
    total: int
    numbers: np.ndarray
    labels: np.ndarray | None = None
    num_classes: int = 0
    fingerprint: str | None = None


def load_images(path: str | Path, count: int = 2000) -> ImageSet:
    """Draw at most `count` images of a RecordIO set or a `.bin` set: always the same ones of the same number.

    A larger draw contains a smaller one. Raises DataError as `load_bin` and `open_dataset`, and for an image that is
    not 112×112.
    """
    path = Path(path)
    if path.suffix == ".bin":
        everything = load_bin(path).images
        if not len(everything):
            raise DataError(f"{path}: no pairs in this set")
        chosen = choose(len(everything), count)
        return ImageSet(str(path), everything[chosen], [f"{path}: image {i}" for i in chosen], len(everything), chosen)
    dataset = open_dataset(path)
    return _of_dataset(path, dataset, choose(dataset.num_images, count))


def load_subjects(path: str | Path) -> ImageSet | None:
    """All images (at most 100 each) of two people drawn from a RecordIO set: the paper's Fig. 8. None for `.bin` sets.

    Always the same two: among the classes of at least 10 images, else the two with the most.
    """
    if Path(path).suffix == ".bin":
        return None
    dataset = open_dataset(path)
    count = np.bincount(dataset.labels)
    candidates = np.flatnonzero(count >= LEAST_OF_SUBJECT)
    if len(candidates) < SUBJECTS:
        candidates = np.argsort(-count, kind="stable")[:SUBJECTS]
    key = stream_key(_SUBSET, candidates)
    labels = candidates[np.sort(np.argsort(key, kind="stable")[:SUBJECTS])]
    chosen = [np.flatnonzero(dataset.labels == label)[:MOST_OF_SUBJECT] for label in labels]
    return _of_dataset(Path(path), dataset, np.concatenate(chosen))


def _of_dataset(path: Path, dataset: RecordDataset, chosen: np.ndarray) -> ImageSet:
    images = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    names = [dataset.where(int(sample)) for sample in chosen]
    for row, sample in enumerate(chosen):
        try:
            images[row] = decode_face(dataset.encoded(int(sample)))
        except ImageError as error:
            raise DataError(f"{names[row]}: {error}") from None
    labels = dataset.labels[chosen]
    facts = dataset.num_images, chosen, labels, dataset.num_classes, dataset.fingerprint()
    return ImageSet(str(path), images, names, *facts)


def choose(total: int, count: int) -> np.ndarray:
    """`count` of the numbers below `total`, rising, int64: a function of these two alone."""
    key = stream_key(_SUBSET, np.arange(total))
    return np.sort(np.argsort(key, kind="stable")[:count])
