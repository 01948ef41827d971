"""A planned augmentation in NumPy, image by image: what the fallback loader does, and the reference of DALI's graph.

Equal to DALI's pixels on the CPU within one grey level for each operation, to the bit for flip, crop, cut-out and JPEG
compression. The order is that of recognition/data/augmentation.py.
Proven by tests/recognition/data/test_loaders.py and tests/recognition/data/test_augment_pixels.py.
"""

import math

import cv2
import numpy as np

from recognition.data.augmentation import IMAGE_SIDE, INTERPOLATIONS, Draws
from recognition.data.colour import apply_colour
from recognition.data.resample import resize

RESIZED_CROP = INTERPOLATIONS.index("linear")
_WHOLE, _IDENTITY = [0, 0, IMAGE_SIDE, IMAGE_SIDE], np.eye(3, 4).tolist()  # what changes nothing


def augment(image: np.ndarray, draws: Draws, row: int) -> np.ndarray:
    """An image uint8 [112, 112, 3] as drawn for a row."""
    if draws.flip[row]:
        image = image[:, ::-1]
    if draws.resized[row].tolist() != _WHOLE:
        image = resize(image[_rectangle(draws.resized[row])], IMAGE_SIDE, RESIZED_CROP)
    if draws.colour[row].tolist() != _IDENTITY:
        image = apply_colour(image, draws.colour[row])
    if draws.sigma[row] > 0:
        image = blur(image, draws.sigma[row])
    if draws.crop[row].tolist() != _WHOLE:
        kept = _rectangle(draws.crop[row])
        blanked = np.zeros_like(image)
        blanked[kept] = image[kept]
        image = blanked
    if draws.side[row] < IMAGE_SIDE:
        small = resize(image, int(draws.side[row]), int(draws.down[row]))
        image = resize(small, IMAGE_SIDE, int(draws.up[row]))
    if draws.quality[row] > 0:
        image = compress(image, int(draws.quality[row]))
    if draws.cutout[row, 2] > 0:
        image = image.copy()
        image[_rectangle(draws.cutout[row])] = 0
    return image


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of `sigma` pixels within ⌈3·sigma⌉, normalised to sum 1, over an image mirrored at its edges' pixels.

    Rows and columns one after the other in float32, rounded once.
    """
    radius = blur_radius(sigma)
    place = np.arange(-radius, radius + 1)
    weight = np.exp(-(place**2) / (2 * float(sigma) ** 2))
    kernel = (weight / weight.sum()).astype(np.float32)
    blurred = cv2.sepFilter2D(image.astype(np.float32), -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


def blur_radius(sigma: float) -> int:
    """How far a blur reaches, in pixels."""
    return math.ceil(3 * float(sigma))


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """An image through JPEG of a quality 1 … 100, colour at half the resolution (OpenCV's default, and DALI's)."""
    encoded = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1]


def _rectangle(place: np.ndarray) -> tuple[slice, slice]:
    top, left, height, width = place.tolist()
    return slice(top, top + height), slice(left, left + width)
