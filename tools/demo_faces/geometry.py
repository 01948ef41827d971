"""Where a point of the face falls in the picture: a head in 2.5 dimensions, turned and placed, and smooth curves.

Features lie on an ellipsoid before the head's centre and turn with it (parallax); the outline of the head and hair is
an occluding contour, which keeps its width when the head turns. Both maps are affine in the control points, so curves
are interpolated after projecting. Proven by tests/tools/test_make_demo_data.py.
"""

from functools import lru_cache

import numpy as np

DEPTH, HALF_WIDTH, HALF_HEIGHT = 30.0, 38.0, 60.0  # of the ellipsoid that the features lie on
_FALL = np.array([1 / HALF_WIDTH**2, 1 / HALF_HEIGHT**2])
FLATTENING = 0.8  # depth over width of the head's outline


class View:
    """A turned head placed on a canvas by the similarity p ↦ factor·p + offset over complex x + iy."""

    def __init__(self, yaw: float, pitch: float, roll: float, factor: complex = 1.0, offset: complex = 0.0) -> None:
        self.angles = yaw, pitch, roll
        self.factor, self.offset = factor, offset
        self.scale = abs(factor)
        turn = _rotation(yaw, pitch, roll)[:2]
        outline = turn.copy()
        outline[:, :2] = _rotation(0, 0, roll)[:2, :2] * (_kept_width(yaw), _kept_width(pitch))
        place = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
        self._turn, self._outline = (place @ turn).T, (place @ outline).T
        self._shift = np.array([offset.real, offset.imag])

    def placed(self, factor: complex, offset: complex) -> "View":
        """The same head somewhere else."""
        return View(*self.angles, factor, offset)

    def surface(self, points: np.ndarray, lift: float | np.ndarray = 0.0) -> np.ndarray:
        """Canvas positions float [n, 2] of points [n, 2] on the face, `lift` pixels before it."""
        bulge = 1.0 - (points * points) @ _FALL
        depth = DEPTH * np.sqrt(np.maximum(bulge, 0.02)) + lift
        return points @ self._turn[:2] + np.multiply.outer(depth, self._turn[2]) + self._shift

    def outline(self, points: np.ndarray) -> np.ndarray:
        """Canvas positions float [n, 2] of contour points [n, 3] (x, y, z before the head's centre)."""
        return points @ self._outline + self._shift

    def rigid(self, points: np.ndarray) -> np.ndarray:
        """Canvas positions float [n, 2] of points [n, 3] that turn with the head as a solid does."""
        return points @ self._turn + self._shift


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[complex, complex]:
    """Least-squares similarity (factor, offset) that takes points [n, 2] to points [n, 2], without reflection.

    In complex numbers it is a regression on one variable: factor = Σ conj(p)·q / Σ |p|², p and q centred.
    """
    p, q = source @ (1, 1j), target @ (1, 1j)
    p_mean, q_mean = p.mean(), q.mean()
    factor = complex(np.vdot(p - p_mean, q - q_mean) / np.vdot(p - p_mean, p - p_mean))
    return factor, complex(q_mean - factor * p_mean)


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
    cos, sin = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    about_y = np.array([[cos[0], 0, sin[0]], [0, 1, 0], [-sin[0], 0, cos[0]]])
    about_x = np.array([[1, 0, 0], [0, cos[1], sin[1]], [0, -sin[1], cos[1]]])
    about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def _kept_width(angle: float) -> float:
    return float(np.sqrt(np.cos(angle) ** 2 + (FLATTENING * np.sin(angle)) ** 2))
