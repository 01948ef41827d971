"""Five landmarks of the face a picture is about, by OpenCV's FaceDetectorYN and a YuNet model in ONNX.

Of several faces the largest central one counts: area − 2 · (distance of its centre from the picture's)², in pixels, as
FaceNet's and ArcFace's alignment choose. Proven by tests/tools/records/test_align_build.py.
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from recognition.errors import SettingsError

MIN_SCORE = 0.6
_MAX_OVERLAP = 0.3  # of two boxes that are one face
_MAX_SIDE = 640  # YuNet is trained on pictures of this side; a face one looks for is no small part of its picture


class Face(NamedTuple):
    """Landmarks float32 [5, 2] in the picture's pixels, and the detector's score in [0, 1]."""

    landmarks: np.ndarray
    score: float


class FaceDetector:
    """A detector for one thread; a SettingsError when the model is none."""

    def __init__(self, model: Path, min_score: float = MIN_SCORE) -> None:
        before = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of its own engine
        try:
            self._detector = cv2.FaceDetectorYN.create(str(model), "", (320, 320), min_score, _MAX_OVERLAP)
            self.find(np.zeros((64, 64, 3), np.uint8))
        except cv2.error as error:
            raise SettingsError(f"{model}: OpenCV cannot use it as a YuNet face detector: {error.err}") from error
        finally:
            cv2.utils.logging.setLogLevel(before)

    def find(self, image: np.ndarray) -> Face | None:
        """The largest central face of an RGB picture uint8 [H, W, 3]; None without a face."""
        height, width = image.shape[:2]
        scale = min(1.0, _MAX_SIDE / max(height, width))
        small = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if scale < 1:
            side = max(1, round(width * scale)), max(1, round(height * scale))
            small = cv2.resize(small, side, interpolation=cv2.INTER_AREA)
        self._detector.setInputSize((small.shape[1], small.shape[0]))
        _, faces = self._detector.detect(small)
        if faces is None or not np.isfinite(faces).all():
            return None
        x, y, wide, high = faces[:, :4].T
        off_centre = (x + wide / 2 - small.shape[1] / 2) ** 2 + (y + high / 2 - small.shape[0] / 2) ** 2
        best = faces[np.argmax(wide * high - 2 * off_centre)]
        # The centre of pixel (x, y) is at (x, y): a resize by s takes x to (x + ½)·s − ½.
        back = np.array([width / small.shape[1], height / small.shape[0]])
        return Face(((best[4:14].reshape(5, 2) + 0.5) * back - 0.5).astype(np.float32), float(best[14]))
