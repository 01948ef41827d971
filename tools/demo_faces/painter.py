"""Filling shapes with sub-pixel edges, on a picture and on the soft shadows that are multiplied into it.

Proven by tests/tools/test_make_demo_data.py.
"""

from collections.abc import Sequence

import cv2
import numpy as np

NEUTRAL = 160  # of the shadow layer: multiplied by this value the picture stays as it is
_SHIFT = 4  # fractional bits of OpenCV's coordinates
_UNIT = 1 << _SHIFT


class Painter:
    """A picture uint8 [height, width, 3] RGB and its layer of soft shadows, which is half as wide and high."""

    def __init__(self, picture: np.ndarray, scale: float) -> None:
        self.picture = picture
        self.scale = scale  # canvas pixels per unit of length
        height, width = picture.shape[:2]
        self._shadow = np.full(((height + 1) // 2, (width + 1) // 2, 3), NEUTRAL, np.uint8)

    def fill(self, points: np.ndarray, colour: Sequence[float]) -> None:
        """Fill the polygon float [n, 2] (canvas positions)."""
        cv2.fillPoly(self.picture, [_fixed(points)], colour, cv2.LINE_AA, _SHIFT)

    def stroke(self, points: np.ndarray, colour: Sequence[float], width: float, closed: bool = False) -> None:
        """Draw a line `width` units wide; one thinner than a canvas pixel is drawn a pixel wide."""
        cv2.polylines(
            self.picture, [_fixed(points)], closed, colour, max(round(width * self.scale), 1), cv2.LINE_AA, _SHIFT
        )

    def dot(self, centre: np.ndarray, radius: float, colour: Sequence[float]) -> None:
        """Fill a circle, its radius in units."""
        x, y = _fixed(centre).tolist()
        cv2.circle(self.picture, (x, y), max(int(radius * self.scale * _UNIT), 1), colour, -1, cv2.LINE_AA, _SHIFT)

    def shadow(self, points: np.ndarray, factor: float | Sequence[float]) -> None:
        """Darken (factor below 1) or lighten a polygon in the soft layer; a sequence is one factor per channel."""
        factors = (factor, factor, factor) if isinstance(factor, (int, float)) else factor
        colour = [value * NEUTRAL for value in factors]
        cv2.fillPoly(self._shadow, [_fixed(points * 0.5)], colour, cv2.LINE_AA, _SHIFT)

    def settle(self, softness: float) -> None:
        """Blur the soft layer by `softness` units, multiply it into the picture, and begin a new one."""
        soft = cv2.GaussianBlur(self._shadow, (0, 0), max(softness * self.scale * 0.5, 0.5))
        soft = cv2.resize(soft, self.picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        cv2.multiply(self.picture, soft, dst=self.picture, scale=1.0 / NEUTRAL)
        self._shadow[:] = NEUTRAL


def _fixed(points: np.ndarray) -> np.ndarray:
    return (points * _UNIT).astype(np.int32)
