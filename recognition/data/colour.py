"""Brightness, contrast, saturation, hue and greyscale as one matrix: each is linear in RGB, and so is their product.

One matrix means one rounding and one clipping, however many of them an image has, in every loader alike.
Proven by tests/recognition/data/test_colour.py.
"""

import numpy as np

MIDDLE = 127.5  # the grey level that contrast leaves alone, which is the network's 0
LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B: ITU-R BT.601, as in JPEG


def colour_matrices(
    brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, hue: np.ndarray, grey: np.ndarray
) -> np.ndarray:
    """Matrices [A | t] float32 [b, 3, 4] of RGB' = A·RGB + t in grey levels, to be rounded and clipped to 0 … 255.

    x → contrast·(brightness·x − 127.5) + 127.5, then saturation and hue, then greyscale where `grey` (bool [b]).
    With luma Y = LUMA·RGB and blue and red differences from it, saturation multiplies the differences and hue turns
    their plane by degrees; grey stays grey and the luma is kept, up to clipping. Arguments float64 [b].
    """
    angle = np.deg2rad(hue)
    chroma = np.zeros((len(hue), 3, 3))
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * np.cos(angle)
    chroma[:, 1, 2] = -saturation * np.sin(angle)
    chroma[:, 2, 1] = saturation * np.sin(angle)
    chroma[grey, 1:] = 0
    linear = (contrast * brightness)[:, None, None] * (_TO_RGB @ chroma @ _TO_LUMA)
    shift = np.repeat((MIDDLE * (1 - contrast))[:, None, None], 3, axis=1)  # rows of the chroma part sum to 1
    return np.concatenate([linear, shift], axis=2).astype(np.float32)


def apply_colour(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """An image uint8 [h, w, 3] through a matrix float32 [3, 4]: uint8 [h, w, 3]."""
    coloured = image.astype(np.float32) @ matrix[:, :3].T + matrix[:, 3]
    return np.clip(np.rint(coloured), 0, 255).astype(np.uint8)


def _luma_and_differences() -> np.ndarray:
    """RGB to luma and (B − Y)/2(1 − LUMA_B), (R − Y)/2(1 − LUMA_R), BT.601's scale of both: float64 [3, 3]."""
    blue, red = np.array([0, 0, 1]) - LUMA, np.array([1, 0, 0]) - LUMA
    return np.stack([LUMA, blue / (2 * (1 - LUMA[2])), red / (2 * (1 - LUMA[0]))])


_TO_LUMA = _luma_and_differences()
_TO_RGB = np.linalg.inv(_TO_LUMA)
