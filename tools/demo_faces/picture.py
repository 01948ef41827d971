"""One picture of one person: a pure function of (seed, variation, request).

Proven by tests/tools/test_make_demo_data.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recognition.data.align import SIZE, similarity_transform
from tools.demo_faces import features, light, surroundings
from tools.demo_faces.geometry import View
from tools.demo_faces.identity import SPLITS, Identity, make_identity
from tools.demo_faces.painter import Painter
from tools.demo_faces.quality import degrade, draw_quality, encode
from tools.demo_faces.scene import Scene, Variation, make_scene

LOOSE_SIDES = (160, 250)


class Request(NamedTuple):
    """Which picture is wanted. Two requests with the same first three fields are the same scene."""

    split: str
    identity: int
    number: int  # of the person's pictures, from 0
    quality: str  # a kind of QUALITIES
    loose: bool = False  # a loose crop of 160 to 250 pixels rather than an aligned 112×112


class Picture(NamedTuple):
    """An encoded picture and the truth about it."""

    request: Request
    jpeg: bytes
    quality: float  # 0 unrecognisable … 1 crisp
    pose: tuple[float, float, float]  # yaw, pitch, roll, radians
    occlusion: str
    landmarks: np.ndarray  # float64 [5, 2], pixels of this picture


def make_pictures(seed: int, variation: Variation, requests: Sequence[Request]) -> list[Picture]:
    """Draw pictures; consecutive ones of one person share the work of making the person."""
    pictures: list[Picture] = []
    person, face = None, None
    for request in requests:
        if person != request[:2] or face is None:
            person, face = request[:2], make_identity(seed, request.split, request.identity)
        pictures.append(make_picture(seed, variation, request, face))
    return pictures


def make_picture(seed: int, variation: Variation, request: Request, face: Identity) -> Picture:
    """Draw one picture of `face`, who is the request's identity."""
    random = np.random.default_rng((seed, SPLITS[request.split], request.identity, request.number + 1))
    scene = make_scene(random, variation)
    quality = draw_quality(request.quality, random)
    free = View(scene.yaw, scene.pitch, scene.roll)
    if request.loose:
        side, factor, offset = _loose_placement(random)
    else:
        found = features.landmarks(face, scene, free) + scene.misalignment
        (a, _, x), (b, _, y) = similarity_transform(found).tolist()
        side, factor, offset = SIZE, complex(a, b), complex(x, y)
    view = free.placed(factor, offset)
    picture = degrade(render(face, scene, view, side), quality, view.scale, random)
    pose = (scene.yaw, scene.pitch, scene.roll)
    landmarks = features.landmarks(face, scene, view)
    return Picture(request, encode(picture, quality, random), quality, pose, scene.occlusion, landmarks)


def render(face: Identity, scene: Scene, view: View, side: int) -> np.ndarray:
    """Draw a person in a scene, crisp: uint8 [side, side, 3] RGB."""
    random = np.random.default_rng(scene.detail_seed)
    picture = np.empty((side, side, 3), np.uint8)
    surroundings.draw_background(picture, random)
    painter = Painter(picture, view.scale)
    surroundings.draw_back_hair(painter, face, view)
    surroundings.draw_shoulders(painter, face, view, random)
    features.draw_head(painter, face, scene, view)
    features.draw_relief(painter, face, scene, view)
    features.draw_marks(painter, face, scene, view)
    features.draw_eyes(painter, face, scene, view)
    features.draw_brows(painter, face, scene, view)
    features.draw_nose(painter, face, scene, view)
    features.draw_mouth(painter, face, scene, view)
    surroundings.draw_front_hair(painter, face, view)
    surroundings.draw_occlusion(painter, face, scene, view, random)
    return light.develop(light.light_up(picture, scene, view, random), scene)


def _loose_placement(random: np.random.Generator) -> tuple[int, complex, complex]:
    side = int(random.integers(LOOSE_SIDES[0], LOOSE_SIDES[1] + 1))
    factor = side / float(random.uniform(150, 220)) * np.exp(1j * random.uniform(-0.2, 0.2))
    return side, complex(factor), complex(*(side * (0.5 + random.uniform(-0.05, 0.05, 2))))
