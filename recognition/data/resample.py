"""Resizing images the way DALI's CPU operator does it, in NumPy: what each interpolation of the plan computes.

Rows and columns are resized one after the other in float32 and rounded to uint8 once. Output pixel i of n takes input
position c = (i + ½)·m/n − ½ of m. Filters are evaluated at the distance from c, normalised to sum 1, and edge pixels
continue outside the image. Only `area` widens its filter with m/n (anti-aliasing).
Proven by tests/recognition/data/test_loaders.py, which compares each with DALI.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from recognition.data.augmentation import INTERPOLATIONS


def resize(image: np.ndarray, side: int, interpolation: int) -> np.ndarray:
    """An image uint8 [h, w, 3] resized to [side, side, 3]; interpolation is a number in INTERPOLATIONS."""
    name, (height, width) = INTERPOLATIONS[interpolation], image.shape[:2]
    if name == "nearest":
        return image[nearest(height, side)[0][:, None], nearest(width, side)[1]]
    half = _resize_rows_and_transpose(image.astype(np.float32), filter_matrix(height, side, name))
    resized = _resize_rows_and_transpose(half, filter_matrix(width, side, name))
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def _resize_rows_and_transpose(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    height, width, channels = image.shape
    resized = weights @ image.reshape(height, width * channels)
    return np.ascontiguousarray(resized.reshape(len(weights), width, channels).transpose(1, 0, 2))


@lru_cache(maxsize=256)
def nearest(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Which row and which column each output row and column takes, int64 [size_out] each.

    Where c falls between two pixels the rounding errors decide: DALI adds up row positions in float32 but multiplies
    for columns, and so does this.
    """
    scale = np.float32(size_in) / np.float32(size_out)
    steps = np.full(size_out, scale, np.float32)
    steps[0] *= np.float32(0.5)
    rows = np.add.accumulate(steps)
    columns = (np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * scale
    return tuple(np.minimum(np.floor(x).astype(np.int64), size_in - 1) for x in (rows, columns))  # type: ignore[return-value]


@lru_cache(maxsize=1024)
def filter_matrix(size_in: int, size_out: int, name: str) -> np.ndarray:
    """Weights float32 [size_out, size_in] of one axis; every row sums to 1."""
    kernel, radius = _KERNELS[name]
    scale = size_in / size_out
    width = max(scale, 1.0) if name == "area" else 1.0
    center = (np.arange(size_out) + 0.5) * scale - 0.5
    first = np.ceil(center - radius * width).astype(np.int64)
    taps = first[:, None] + np.arange(int(2 * radius * width) + 1)
    weights = kernel((taps - center[:, None]) / width)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out)[:, None], np.clip(taps, 0, size_in - 1)), weights)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def triangle(x: np.ndarray) -> np.ndarray:
    """max(0, 1 − |x|)."""
    return np.maximum(1 - np.abs(x), 0)


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = −½ (1981), of radius 2. OpenCV's has a = −¾."""
    x = np.abs(x)
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def lanczos(x: np.ndarray) -> np.ndarray:
    """sinc(x)·sinc(x/3), of radius 3."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


_KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "linear": (triangle, 1),
    "area": (triangle, 1),
    "cubic": (cubic, 2),
    "lanczos": (lanczos, 3),
}
