"""Five landmarks of a face → the 112×112 crop that networks of this field are trained on.

Owns the template and the similarity transform onto it. Points are (x, y) in pixels; images uint8 RGB [H, W, 3]. Proven
by tests/recognition/data/test_align.py, against transforms that are known and against Umeyama's SVD form.
"""

import cv2
import numpy as np

SIZE = 112
# Left eye, right eye, nose, left and right corner of the mouth, as seen in the picture. ArcFace's template: the
# 96×112 points of SphereFace, moved 8 pixels to the right.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity_transform(points: np.ndarray, target: np.ndarray = TEMPLATE) -> np.ndarray:
    """Scale, rotation and shift (no mirroring) that bring `points` nearest to `target` in the squared sense.

    With points as complex numbers p, q less their means, the best a in q ≈ a·p is Σ p̄q / Σ |p|²: what Umeyama (1991)
    solves by SVD in any number of dimensions.

    Args:
        points: float [n, 2].
        target: float [n, 2].

    Returns:
        float64 [2, 3]: target ≈ M[:, :2] @ point + M[:, 2].

    Raises:
        ValueError: shapes differ, a number is not finite, or all points coincide.
    """
    points, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    if points.shape != target.shape or points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"expected points of shape {list(target.shape)}, got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError(f"landmarks are not finite: {points.tolist()}")
    p, q = points @ (1, 1j), target @ (1, 1j)
    spread = p - p.mean()
    size = np.vdot(spread, spread).real
    if size <= 1e-12 * max(1.0, float(np.vdot(p, p).real)):
        raise ValueError(f"all landmarks coincide at {points[0].tolist()}")
    a = np.vdot(spread, q - q.mean()) / size
    shift = q.mean() - a * p.mean()
    return np.array([[a.real, -a.imag, shift.real], [a.imag, a.real, shift.imag]])


def align_face(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Crop a face: uint8 [H, W, 3] and landmarks [5, 2] → uint8 [112, 112, 3], bilinear, black beyond the border.

    Raises:
        ValueError: as `similarity_transform`.
    """
    return cv2.warpAffine(image, similarity_transform(landmarks), (SIZE, SIZE), borderValue=0)
