"""Where a point of the face falls in the picture: a head in 2.5 dimensions, turned and placed, and smooth curves.

Features lie on an ellipsoid before the head's centre and turn with it (parallax); the outline of the head and hair is
an occluding contour, which keeps its width when the head turns. Curves are interpolated after their control points are
projected. Proven by tests/tools/test_make_demo_data.py.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np

DEPTH, HALF_WIDTH, HALF_HEIGHT = 30.0, 38.0, 60.0  # of the ellipsoid that the features lie on
_FALL = np.array([1 / HALF_WIDTH**2, 1 / HALF_HEIGHT**2])
FLATTENING = 0.8  # depth over width of the head's outline


class View:
    """A turned head placed on a canvas by the similarity p ↦ factor·p + offset over complex x + iy."""

    def __init__(self, yaw: float, pitch: float, roll: float, factor: complex = 1.0, offset: complex = 0.0) -> None:
        turn = _rotation(yaw, pitch, roll)[:2]
        outline = turn.copy()
        cos, sin = np.cos(roll), np.sin(roll)
        outline[:, 0] = np.array([cos, sin]) * _kept_width(yaw)
        outline[:, 1] = np.array([-sin, cos]) * _kept_width(pitch)
        self._place(turn, outline, factor, offset)

    def _place(self, turn: np.ndarray, outline: np.ndarray, factor: complex, offset: complex) -> None:
        self._unplaced = turn, outline
        self.factor, self.offset = factor, offset
        self.scale = abs(factor)
        place = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
        self._turn = np.ascontiguousarray((place @ turn).T)
        self._outline = np.ascontiguousarray((place @ outline).T)
        self._across, self._toward = self._turn[:2], self._turn[2]
        self._shift = np.array([offset.real, offset.imag])

    def placed(self, factor: complex, offset: complex) -> "View":
        """The same head somewhere else."""
        view = View.__new__(View)
        view._place(*self._unplaced, factor, offset)
        return view

    def surface(self, points: np.ndarray, lift: float | np.ndarray = 0.0) -> np.ndarray:
        """Canvas positions float [n, 2] of points [n, 2] on the face, `lift` pixels before it."""
        bulge = 1.0 - (points * points) @ _FALL
        depth = DEPTH * np.sqrt(np.maximum(bulge, 0.02)) + lift
        return points @ self._across + np.multiply.outer(depth, self._toward) + self._shift

    def surfaces(self, shapes: Sequence[np.ndarray], lifts: Sequence[float | np.ndarray]) -> list[np.ndarray]:
        """Canvas positions of several shapes, each before the face by its lift; one projection is faster than many."""
        lengths = [len(shape) for shape in shapes]
        lift = np.empty(sum(lengths))
        stops = list(accumulate(lengths))
        for start, stop, value in zip([0, *stops], stops, lifts, strict=False):
            lift[start:stop] = value
        points = self.surface(np.concatenate(shapes), lift)
        return [points[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def outline(self, points: np.ndarray) -> np.ndarray:
        """Canvas positions float [n, 2] of contour points [n, 3] (x, y, z before the head's centre)."""
        return points @ self._outline + self._shift

    def rigid(self, points: np.ndarray) -> np.ndarray:
        """Canvas positions float [n, 2] of points [n, 3] that turn with the head as a solid does."""
        return points @ self._turn + self._shift


def path(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points float [n, 2] from their coordinates [n]; faster than numpy.stack, which is felt in thousands of them."""
    points = np.empty((len(x), 2))
    points[:, 0] = x
    points[:, 1] = y
    return points


def smooth(points: np.ndarray, closed: bool = True, steps: int = 4) -> np.ndarray:
    """Catmull-Rom curve through points [n, 2], `steps` positions a span."""
    return _curve_basis(len(points), closed, steps) @ points


@lru_cache(maxsize=64)
def _curve_basis(count: int, closed: bool, steps: int) -> np.ndarray:
    t = np.arange(steps) / steps
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    spans = count if closed else count - 1
    basis = np.zeros((spans * steps + (not closed), count))
    for span in range(spans):
        for neighbour in range(4):
            index = span + neighbour - 1
            index = index % count if closed else min(max(index, 0), count - 1)
            basis[span * steps : (span + 1) * steps, index] += weights[:, neighbour]
    if not closed:
        basis[-1, -1] = 1.0
    return basis


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation float [3, 3]: about the vertical axis by yaw, then about x by pitch, then in the picture by roll."""
    (cy, cx, cz), (sy, sx, sz) = np.cos([yaw, pitch, roll]).tolist(), np.sin([yaw, pitch, roll]).tolist()
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def _kept_width(angle: float) -> float:
    return math.hypot(math.cos(angle), FLATTENING * math.sin(angle))
