"""How well a picture was recorded: from crisp (quality 1) to unrecognisable (0), and the number for it.

severity = 1 − quality sets the strength of the worst of four faults (few pixels, defocus, motion, noise); the others
are drawn weaker. The strengths are lengths of the aligned 112×112 picture, chosen by eye on the contact sheet so that
faults of the same severity hide a face about equally: at 0.5 it is a struggle, beyond 0.85 nobody knows the face.
Proven by tests/tools/test_make_demo_data.py.
"""

from bisect import bisect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import cv2
import numpy as np

# kind: ((share of the pictures, lowest, highest quality), …)
QUALITIES = {
    "mixed": ((0.70, 0.55, 1.0), (0.18, 0.30, 0.55), (0.12, 0.0, 0.30)),
    "recognisable": ((1.0, 0.60, 1.0),),
    "degraded": ((1.0, 0.10, 0.40),),
    "unconstrained": ((0.45, 0.60, 1.0), (0.35, 0.30, 0.60), (0.20, 0.05, 0.30)),
    "all": ((1.0, 0.0, 1.0),),
}
FAULTS = ("pixels", "defocus", "motion", "noise")
_INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


def draw_quality(kind: str, random: np.random.Generator) -> float:
    """The quality in [0, 1] of one picture of a set of this kind."""
    shares, lows, highs = zip(*QUALITIES[kind], strict=True)
    part = pick(shares, random.random())
    return float(random.uniform(lows[part], highs[part]))


def pick(shares: Sequence[float], draw: float) -> int:
    """Which of the shares (sum 1) a uniform draw in [0, 1) falls into; Generator.choice takes ten times as long."""
    return min(bisect(list(accumulate(shares)), draw), len(shares) - 1)


def degrade(picture: np.ndarray, quality: float, scale: float, random: np.random.Generator) -> np.ndarray:
    """Picture uint8 [height, width, 3] as a device of this quality records it; `scale`: pixels per aligned pixel."""
    severity = 1.0 - quality
    strength = dict(zip(FAULTS, (severity * random.random(4) ** 2 * 0.7).tolist(), strict=True))
    strength[FAULTS[int(random.integers(4))]] = severity
    picture = _defocus(picture, strength["defocus"], scale)
    picture = _motion(picture, strength["motion"], scale, float(random.uniform(0, np.pi)))
    height, width = picture.shape[:2]
    share = min(2.0 ** (-4.7 * strength["pixels"]) / min(scale, 1.0), 1.0)
    small = (max(round(width * share / max(scale, 1.0)), 2), max(round(height * share / max(scale, 1.0)), 2))
    coarse = strength["pixels"] > 0.05 and small[0] < width
    if coarse:
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    picture = _noise(picture, strength["noise"], random)
    if coarse:
        picture = cv2.resize(picture, (width, height), interpolation=_INTERPOLATIONS[int(random.integers(3))])
    return picture


def encode(picture: np.ndarray, quality: float, random: np.random.Generator) -> bytes:
    """Encode RGB as JPEG; the worse the picture, the stronger the compression may be."""
    jpeg_quality = round(94 - random.uniform(0.1, 1.0) * 76 * (1.0 - quality))
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    )
    assert done
    return encoded.tobytes()


def _defocus(picture: np.ndarray, strength: float, scale: float) -> np.ndarray:
    sigma = 11.0 * strength**1.8 * scale
    if sigma < 0.3:
        return picture
    small, shrunk = _shrink(picture, sigma / 3.0)
    return _restore(cv2.GaussianBlur(small, (0, 0), sigma / shrunk), picture)


def _motion(picture: np.ndarray, strength: float, scale: float, angle: float) -> np.ndarray:
    length = 52.0 * strength**1.8 * scale
    if length < 1.5:
        return picture
    small, shrunk = _shrink(picture, length / 10.0)
    length /= shrunk
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    start, end = np.rint(half - reach).astype(int).tolist(), np.rint(half + reach).astype(int).tolist()
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA)
    return _restore(cv2.filter2D(small, -1, kernel / kernel.sum()), picture)


def _shrink(picture: np.ndarray, most: float) -> tuple[np.ndarray, int]:
    """The picture shrunk by the whole number that `most` allows, and that number: a wide blur then costs little."""
    shrunk = max(int(most), 1)
    if shrunk == 1:
        return picture, 1
    height, width = picture.shape[:2]
    return cv2.resize(picture, (width // shrunk, height // shrunk), interpolation=cv2.INTER_AREA), shrunk


def _restore(small: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """A shrunk picture at the size of the original."""
    if small.shape == picture.shape:
        return small
    return cv2.resize(small, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _noise(picture: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Sensor noise on a picture whose contrast has fallen as its light has."""
    deviation = 2.0 + 95.0 * strength**1.8
    keep = 1.0 - 0.75 * strength**2
    height, width = picture.shape[:2]
    grain = _grain()
    top, left = random.integers(0, (len(grain) - height + 1, len(grain) - width + 1)).tolist()
    signal = cv2.convertScaleAbs(picture, alpha=keep, beta=128.0 * (1 - keep))
    noise = grain[top : top + height, left : left + width]
    return cv2.addWeighted(signal, 1.0, noise, deviation / 40.0, -128.0 * deviation / 40.0)


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Noise of mean 128 and deviation 40, uint8 [640, 640, 3]: pictures take windows of it, which costs little."""
    grain = np.random.default_rng(20210).normal(128.0, 40.0, (640, 640, 3))
    return np.clip(grain, 0, 255).astype(np.uint8)
