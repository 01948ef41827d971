"""A planned augmentation in NumPy, image by image: what the fallback loader does, and the reference of DALI's graph.

Equal to DALI's pixels on the CPU within one grey level. Proven by tests/recognition/data/test_loaders.py.
"""

import numpy as np

from recognition.data.augmentation import IMAGE_SIDE, Draws
from recognition.data.resample import resize


def augment(image: np.ndarray, draws: Draws, row: int) -> np.ndarray:
    """Flip, crop and down-sample an image uint8 [112, 112, 3] as drawn for a row."""
    if draws.flip[row]:
        image = image[:, ::-1]
    top, left, height, width = draws.crop[row].tolist()
    if (height, width) != image.shape[:2]:
        kept = (slice(top, top + height), slice(left, left + width))
        blanked = np.zeros_like(image)
        blanked[kept] = image[kept]
        image = blanked
    if draws.side[row] < IMAGE_SIDE:
        small = resize(image, int(draws.side[row]), int(draws.down[row]))
        image = resize(small, IMAGE_SIDE, int(draws.up[row]))
    return image
