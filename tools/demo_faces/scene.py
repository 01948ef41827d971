"""How a face is seen in one picture: pose, expression, light, occlusion, surroundings; all independent of who it is.

Angles are radians, colours RGB 0..255, lengths pixels of the aligned picture. Proven by
tests/tools/test_make_demo_data.py.
"""

from bisect import bisect
from dataclasses import dataclass

import numpy as np

OCCLUSIONS = ("none", "glasses", "sunglasses", "mask", "hat", "hand")


@dataclass(frozen=True)
class Variation:
    """How far the pictures of one person differ; 1 is the calibrated strength, 0 a passport photograph."""

    yaw: float = 0.62  # largest, radians; small ones are more frequent
    pitch: float = 0.34
    roll: float = 0.35
    misalignment: float = 1.3  # standard deviation of each landmark, pixels
    light: float = 1.0
    expression: float = 1.0
    occlusion: float = 0.3  # share of the pictures with any


@dataclass(frozen=True)
class Scene:
    """The circumstances of one picture."""

    yaw: float
    pitch: float
    roll: float
    misalignment: np.ndarray  # float [5, 2], pixels
    mouth_open: float  # 0..1
    smile: float  # -1..1
    brow_raise: float  # pixels
    lids: float  # share of the eye's opening that is left, 0..1.2
    gaze: tuple[float, float]
    occlusion: str
    light_direction: np.ndarray  # float [3], unit; x right, y down, z to the viewer
    light_colour: np.ndarray  # float [3], factor per channel
    ambient: np.ndarray  # float [3]
    gain: np.ndarray  # float [3]: white balance and exposure
    gamma: float
    contrast: float
    saturation: float
    detail_seed: int  # of what is drawn by the way: background, clothes, shapes of occlusions


def make_scene(random: np.random.Generator, variation: Variation) -> Scene:
    """Draw the circumstances of one picture."""
    pose = random.beta(1.6, 1.6, 3) * 2 - 1
    yaw, pitch, roll = pose * (variation.yaw, variation.pitch, variation.roll)
    strength, mood = variation.light, variation.expression
    direction = np.array([random.uniform(-1, 1), random.uniform(-0.9, 0.5), random.uniform(0.15, 1.0)])
    ambient_level = random.uniform(0.25, 0.75)
    light_level = random.uniform(0.45, 1.05) * strength
    warm = random.uniform(-1, 1)
    tint = 1 + 0.16 * strength * warm * np.array([1.0, 0.1, -1.0])
    other_tint = 1 + 0.12 * strength * random.uniform(-1, 1) * np.array([1.0, 0.0, -1.0])
    exposure = np.exp(random.uniform(-0.34, 0.38) * strength)
    return Scene(
        yaw=float(yaw),
        pitch=float(pitch),
        roll=float(roll),
        misalignment=random.standard_normal((5, 2)) * variation.misalignment,
        mouth_open=float(mood * max(random.uniform(-0.9, 1.0), 0.0)),
        smile=float(mood * random.uniform(-0.6, 1.0)),
        brow_raise=float(mood * random.uniform(-1.6, 2.4)),
        lids=float(0.08 if random.random() < 0.05 else random.uniform(0.65, 1.15)),
        gaze=(float(random.uniform(-1, 1)), float(random.uniform(-0.5, 0.5))),
        occlusion=_occlusion(random, variation.occlusion),
        light_direction=direction / np.linalg.norm(direction),
        light_colour=light_level * tint,
        ambient=ambient_level * other_tint,
        gain=exposure * (1 + 0.1 * strength * random.uniform(-1, 1, 3)),
        gamma=float(np.exp(random.uniform(-0.35, 0.35) * strength)),
        contrast=float(1 + random.uniform(-0.4, 0.3) * strength),
        saturation=0.0 if random.random() < 0.15 else float(random.uniform(0.5, 1.25)),
        detail_seed=int(random.integers(2**31)),
    )


def _occlusion(random: np.random.Generator, share: float) -> str:
    """Glasses are the most frequent, then hats; `share` of all pictures have any."""
    among = random.random() / max(share, 1e-9)
    return "none" if among >= 1.0 else OCCLUSIONS[1 + bisect((0.4, 0.52, 0.62, 0.84), among)]
