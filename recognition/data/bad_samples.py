"""Samples that cannot be used: found before a decoder meets them, counted, named, and replaced as the plan says.

A look costs a few microseconds: the segments of a JPEG up to its scan, the size in its frame header, and whether it
ends as a JPEG ends (PNG: header and last chunk). What does not look whole is decoded by OpenCV, which decides. A sample
is bad for good; what takes its place is a function of the plan, so that a run that is resumed sees the same.
Proven by tests/recognition/data/test_bad_samples.py.
"""

import logging
import struct
import threading
from collections.abc import Callable
from dataclasses import fields

import numpy as np

from recognition.data.augmentation import IMAGE_SIDE
from recognition.data.batch import Samples
from recognition.data.image_file import ImageError, decode_rgb, image_size
from recognition.data.plan import Plan, PlannedBatch
from recognition.errors import DataError

BAD_SHARE = 1e-4
"""So many bad samples of a set's images may be replaced; more are a DataError."""

logger = logging.getLogger("recognition.data")

_SIZE = IMAGE_SIDE.to_bytes(2, "big") * 2
_SEGMENT = struct.Struct(">HH")
# Frames, tables, the scan, comments, and what belongs to applications.
_SEGMENTS = frozenset([*range(0xFFC0, 0xFFC3), 0xFFC4, 0xFFDB, 0xFFDD, 0xFFDA, 0xFFFE, *range(0xFFE0, 0xFFF0)])
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + IMAGE_SIDE.to_bytes(4, "big") * 2
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_MAX_ATTEMPTS = 1000


class BadSamples:
    """The bad samples that one rank has met: `found` is {sample: reason}."""

    def __init__(self, dataset: Samples, num_images: int, share: float = BAD_SHARE) -> None:
        self.dataset, self.share, self.allowed = dataset, share, int(share * num_images)
        self.found: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many different bad samples this rank has met."""
        return len(self.found)

    def add(self, sample: int, reason: str) -> None:
        """Count and name a bad sample; a DataError when they are too many."""
        with self._lock:
            if sample in self.found:
                return
            self.found[sample] = reason
            text = f"{self.dataset.where(sample)}: {reason}"
            if self.count > self.allowed:
                raise DataError(f"{text}; bad sample {self.count}, where data.bad_share={self.share:g} of the images "
                                f"allows {self.allowed}")
            logger.warning("%s; replaced (bad sample %d of at most %d)", text, self.count, self.allowed)

    def usable(
        self, plan: Plan, planned: PlannedBatch, row: int, use: Callable[[int], np.ndarray | str]
    ) -> np.ndarray:
        """What `use` makes of a row's sample, or of the first of its substitutes of which it makes anything.

        use: a sample's array, or the reason why there is none. The batch's row becomes that of the sample used.
        """
        sample, attempt = int(planned.sample[row]), 0
        while True:
            if sample not in self.found:
                result = use(sample)
                if not isinstance(result, str):
                    return result
                self.add(sample, result)
            attempt += 1
            if attempt > _MAX_ATTEMPTS:
                raise DataError(f"{self.dataset.where(sample)}: bad, as are {_MAX_ATTEMPTS} samples to replace it")
            other = plan.substitute(planned.step, row, attempt)
            sample = planned.sample[row] = int(other.sample[0])
            for item in fields(planned.draws):
                getattr(planned.draws, item.name)[row] = getattr(other.draws, item.name)[0]

    def encoded(self, plan: Plan, planned: PlannedBatch) -> list[np.ndarray]:
        """The encoded images of a batch, each of which looks whole; rows of bad samples are replaced."""
        def look(sample: int) -> np.ndarray | str:
            encoded = self.dataset.encoded(sample)
            return fault(encoded) or encoded

        samples = planned.sample.tolist()
        images = [self.dataset.encoded(sample) for sample in samples]
        for row, image in enumerate(images):
            if not looks_whole(image) or samples[row] in self.found:
                images[row] = self.usable(plan, planned, row, look)
        return images


def fault(encoded: np.ndarray) -> str | None:
    """Why encoded bytes uint8 [n] cannot be used, or None when they look whole."""
    return None if looks_whole(encoded) else fault_of_decoding(encoded)


def fault_of_decoding(encoded: np.ndarray) -> str | None:
    """Why OpenCV cannot decode bytes to an image of 112×112, or None when it can."""
    decoded = decode_face(encoded)
    return decoded if isinstance(decoded, str) else None


def decode_face(encoded: np.ndarray) -> np.ndarray | str:
    """The image, uint8 RGB [112, 112, 3], or the reason why there is none.

    The size in the header decides first: a picture that would take gigabytes is refused, not decoded.
    """
    try:
        height, width = image_size(encoded)
        if (height, width) == (IMAGE_SIDE, IMAGE_SIDE):
            image = decode_rgb(encoded)
            height, width = image.shape[:2]
    except ImageError as error:
        return str(error)
    if (height, width) != (IMAGE_SIDE, IMAGE_SIDE):
        return f"an image of {width}×{height} pixels; expected {IMAGE_SIDE}×{IMAGE_SIDE}"
    return image


def looks_whole(encoded: np.ndarray) -> bool:
    """Whether bytes are built like a whole JPEG or PNG of 112×112. False says only that a decoder should decide."""
    data = encoded.data
    if data[:3] == b"\xff\xd8\xff":
        return data[-2:] == b"\xff\xd9" and _has_jpeg_header(data)
    return data[: len(_PNG_START)] == _PNG_START and data[-len(_PNG_END) :] == _PNG_END


def _has_jpeg_header(data: memoryview) -> bool:
    """Whether segments follow each other up to a scan, with one frame header of the right size among them."""
    at, frames, last = 2, 0, len(data) - 10
    while at < last:
        marker, length = _SEGMENT.unpack_from(data, at)
        if marker not in _SEGMENTS:
            return False
        if marker <= 0xFFC2:  # a frame: baseline, extended or progressive
            frames += data[at + 4] == 8 and data[at + 5 : at + 9] == _SIZE
        elif marker == 0xFFDA:
            return frames == 1
        at += 2 + length
    return False
