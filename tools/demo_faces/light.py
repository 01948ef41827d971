"""Lighting a drawn face and developing the picture: shading, shadow, exposure, colour.

Proven by tests/tools/test_make_demo_data.py.
"""

import cv2
import numpy as np

from tools.demo_faces.geometry import View
from tools.demo_faces.scene import Scene

_COARSE = 20  # side of the grid on which the shading is computed
_AIM = 118.0  # brightness that the camera's exposure aims at
_LEVELS = np.arange(256) / 255.0


def light_up(picture: np.ndarray, scene: Scene, view: View, random: np.random.Generator) -> np.ndarray:
    """Shade a flat picture uint8 [height, width, 3] as an ellipsoid lit from one side; sometimes with a hard shadow."""
    height, width = picture.shape[:2]
    columns = (np.arange(_COARSE) + 0.5) * width / _COARSE
    rows = (np.arange(_COARSE) + 0.5) * height / _COARSE
    place = ((columns[None, :] + 1j * rows[:, None]) - view.offset) / view.factor
    x, y = place.real / 40.0 - 0.5 * np.sin(scene.yaw), (place.imag + 6.0) / 60.0 + 0.4 * np.sin(scene.pitch)
    outside = np.maximum(np.sqrt(x**2 + y**2) / 0.97, 1.0)
    x, y = x / outside, y / outside
    z = np.sqrt(1.0 - x**2 - y**2)
    lambert = np.maximum(np.stack([x, y, z], axis=-1) @ scene.light_direction, 0.0)
    if random.random() < 0.2:
        lambert *= _hard_shadow(place, random)
    factor = scene.ambient + lambert[:, :, None] * scene.light_colour
    factor = cv2.resize(np.clip(factor * 128, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.multiply(picture, factor, scale=1.0 / 128)


def _hard_shadow(place: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Factors over the grid: one side of a random line across the face is in shadow."""
    angle = random.uniform(0, 2 * np.pi)
    distance = place.real * np.cos(angle) + place.imag * np.sin(angle) - random.uniform(-18, 30)
    return 1.0 - random.uniform(0.4, 0.9) * np.clip(distance / 6.0 + 0.5, 0.0, 1.0)


def develop(picture: np.ndarray, scene: Scene) -> np.ndarray:
    """Exposure, saturation, then per channel gain, gamma and contrast, as a camera and its owner set them.

    The camera exposes for the middle of the picture, though not fully: a dark skin stays darker than a light one.
    """
    height, width = picture.shape[:2]
    middle = picture[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]
    exposure = (_AIM / max(cv2.mean(middle)[1], 8.0)) ** 0.7
    if scene.saturation != 1.0:
        grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        picture = cv2.addWeighted(picture, scene.saturation, grey, 1.0 - scene.saturation, 0.0)
    gain = np.full(3, scene.gain.mean()) if scene.saturation == 0.0 else scene.gain
    tone = (exposure * gain[None, :] * _LEVELS[:, None]) ** scene.gamma
    tone = (tone - 0.45) * scene.contrast + 0.45
    table = np.clip(tone * 255.0, 0, 255).astype(np.uint8)
    return cv2.LUT(picture, table[:, None, :])
