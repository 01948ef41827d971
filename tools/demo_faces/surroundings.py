"""Drawing what is around a face: background, shoulders, hair, and what hides a part of it.

Hair belongs to the person; all the rest is drawn from the scene's own numbers. Proven by
tests/tools/test_make_demo_data.py.
"""

import cv2
import numpy as np

from tools.demo_faces.geometry import View, smooth
from tools.demo_faces.identity import Identity, blend, shade
from tools.demo_faces.painter import Painter
from tools.demo_faces.scene import Scene

_ROUND = np.stack([np.cos(np.linspace(0, 2 * np.pi, 13)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 13)[:-1])], axis=1)
_T = np.linspace(-1, 1, 9)


def draw_background(picture: np.ndarray, random: np.random.Generator) -> None:
    """Fill the canvas uint8 [height, width, 3] with soft colours and a few hard-edged things."""
    height, width = picture.shape[:2]
    cells = int(random.integers(2, 7))
    base = random.uniform(15, 240, 3)
    patches = np.clip(base + random.normal(0, random.uniform(8, 65), (cells, cells, 3)), 0, 255).astype(np.uint8)
    picture[:] = cv2.resize(patches, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(random.integers(0, 6))):
        corners = (random.random((4, 2)) * 1.4 - 0.2) * (width, height)
        cv2.fillPoly(picture, [corners.astype(np.int32)], random.uniform(0, 255, 3).tolist())


def draw_shoulders(painter: Painter, face: Identity, view: View, random: np.random.Generator) -> None:
    """Neck and clothes."""
    neck = face["jaw_width"] * 0.82
    colour = random.uniform(10, 235, 3).tolist()
    drop = face["chin_y"]
    body = np.array([
        [-80, 110, -30], [-70, drop + 26, -25], [-neck - 3, drop + 12, -15], [0, drop + 22, -8],
        [neck + 3, drop + 12, -15], [70, drop + 26, -25], [80, 110, -30],
    ])  # fmt: skip
    column = np.array([[-neck, 0, -15], [neck, 0, -15], [neck + 2, drop + 30, -15], [-neck - 2, drop + 30, -15]])
    painter.fill(view.rigid(column.astype(float)), shade(face.skin, 0.68))
    painter.fill(view.rigid(body.astype(float)), colour)


def draw_back_hair(painter: Painter, face: Identity, view: View) -> None:
    """The hair behind the head and beside it."""
    if face["hair_amount"] <= 0:
        return
    volume = face["hair_volume"] * (0.4 + 0.6 * face["hair_amount"])
    side = max(face["temple_width"], face["cheek_width"] - 1.0) + volume * 0.75
    low = face["hair_length"]
    right = np.array([
        [side * 0.8, low, -14], [side + 1.5, low - 8, -14], [side + 1, min(low - 16, -10), -10], [side, -34, -8],
        [side * 0.74, -58 - volume * 0.7, -6],
    ])  # fmt: skip
    top = np.array([[0, -65 - volume, -4.0]])
    outline = np.concatenate([right, top, right[::-1] * (-1, 1, 1)])
    curve = smooth(view.outline(outline))
    painter.fill(_curly(curve, face, painter), shade(face.hair, 0.8))


def draw_front_hair(painter: Painter, face: Identity, view: View) -> None:
    """The hair over the forehead, down to the hairline, with a few strands."""
    if face["hair_amount"] <= 0:
        return
    volume = face["hair_volume"] * (0.4 + 0.6 * face["hair_amount"])
    temple = face["temple_width"]
    line = face["hairline"] + face["fringe"] * face["hair_amount"]
    recede = face["receding"]
    side_y = min(max(face["hair_length"], -30.0), -12.0)
    part = face["parting"]
    hairline = np.array([
        [-temple - 0.5, side_y, 2.0], [-temple * 0.9, -32, 8.0], [-temple * 0.62, line - recede, 16.0],
        [part * 0.55, line + face["hairline_peak"], 22.0],
        [temple * 0.62, line - recede + part * 0.12, 16.0], [temple * 0.9, -32, 8.0], [temple + 0.5, side_y, 2.0],
    ])  # fmt: skip
    over = np.array([
        [temple + volume * 0.75, side_y - 6, 0], [temple + volume * 0.7, -38, 0],
        [temple * 0.72, -60 - volume * 0.7, 0],
        [part * 0.3, -64 - volume, 0], [-temple * 0.72, -60 - volume * 0.7, 0], [-temple - volume * 0.7, -38, 0],
        [-temple - volume * 0.75, side_y - 6, 0],
    ])  # fmt: skip
    lower, upper = smooth(view.outline(hairline), closed=False), smooth(view.outline(over), closed=False)
    painter.fill(_curly(np.concatenate([lower, upper]), face, painter), face.hair)
    start = view.outline(np.array([[part * 0.4, -63 - volume * 0.8, 4.0]]))[0]
    for index, tone in ((5, 1.25), (10, 0.78), (15, 1.2), (20, 0.75)):
        end = lower[min(index, len(lower) - 1)]
        middle = (start + end) / 2 + (end - start)[::-1] * (0.16, -0.16)
        strand = smooth(np.stack([start, middle, end]), closed=False)
        painter.stroke(strand, shade(face.hair, tone), 1.2)


def _curly(curve: np.ndarray, face: Identity, painter: Painter) -> np.ndarray:
    """Waves across a contour, as curly hair has them."""
    if face["curl"] <= 0.2:
        return curve
    away = curve - curve.mean(axis=0)
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
    wave = np.where(np.arange(len(curve)) % 2 == 0, 1.0, -1.0)[:, None]
    return curve + away * wave * (face["curl"] * painter.scale)


def draw_occlusion(painter: Painter, face: Identity, scene: Scene, view: View, random: np.random.Generator) -> None:
    """Whatever the scene puts before the face."""
    if scene.occlusion in ("glasses", "sunglasses"):
        _glasses(painter, face, view, random, dark=scene.occlusion == "sunglasses")
    elif scene.occlusion == "mask":
        _mask(painter, face, view, random)
    elif scene.occlusion == "hat":
        _hat(painter, face, view, random)
    elif scene.occlusion == "hand":
        _hand(painter, view, random)


def _glasses(painter: Painter, face: Identity, view: View, random: np.random.Generator, dark: bool) -> None:
    frame = random.uniform(0, 120, 3).tolist()
    size = random.uniform((8.0, 5.0), (12.0, 9.5))
    power = random.uniform(0.45, 1.0)  # 1 round, less squarer
    shape = np.sign(_ROUND) * np.abs(_ROUND) ** power * size
    width = float(random.uniform(0.8, 2.2))
    for side in (-1.0, 1.0):
        rim = view.surface(np.array([side * face["eye_distance"], face["eye_y"] + 1.0]) + shape, 5.0)
        if dark:
            painter.fill(rim, shade(frame, 0.5))
        painter.stroke(rim, frame, width, closed=True)
        arm = np.array([[face["eye_distance"] + size[0], face["eye_y"], 22.0], [face["cheek_width"], -13.0, -4.0]])
        painter.stroke(view.rigid(arm * (side, 1, 1)), frame, width)
    gap = face["eye_distance"] - size[0]
    bridge = np.array([[-gap, face["eye_y"]], [0, face["eye_y"] - 1.5], [gap, face["eye_y"]]])
    painter.stroke(view.surface(bridge, 6.0), frame, width)


def _mask(painter: Painter, face: Identity, view: View, random: np.random.Generator) -> None:
    colour = blend((235, 238, 240), random.uniform(0, 255, 3).tolist(), float(random.uniform(0, 0.8)))
    top = face["eye_y"] + face["nose_length"] * random.uniform(0.5, 0.9)
    cheek, jaw, chin = face["cheek_width"], face["jaw_width"], face["chin_y"]
    right = np.array([[0, top, 34], [cheek * 0.6, top + 4, 22], [cheek, top + 8, 2], [jaw, face["jaw_y"] + 1, 4],
                      [jaw * 0.6, chin + 1, 12], [0, chin + 2, 16]])  # fmt: skip
    painter.fill(view.outline(np.concatenate([right, right[::-1] * (-1, 1, 1)])), colour)
    for share in (0.35, 0.65):
        y = top + 4 + share * (chin - top)
        fold = np.array([[-20, y, 26], [0, y + 1.5, 34], [20, y, 26]])
        painter.stroke(view.outline(fold), shade(colour, 0.82), 1.0)


def _hat(painter: Painter, face: Identity, view: View, random: np.random.Generator) -> None:
    colour = random.uniform(10, 230, 3).tolist()
    brim = float(random.uniform(-42, -34))
    wide = face["temple_width"] + face["hair_volume"] * 0.5 + float(random.uniform(2, 8))
    dome = np.array([[-wide, brim, 0], [-wide, -60, 0], [-wide * 0.7, -84, 0], [0, -92, 0], [wide * 0.7, -84, 0],
                     [wide, -60, 0], [wide, brim, 0], [0, brim + 2, 14]])  # fmt: skip
    painter.fill(smooth(view.outline(dome.astype(float))), colour)
    if random.random() < 0.6:
        reach = wide * float(random.uniform(0.9, 1.5))
        edge = np.stack([reach * _T, brim + 3 + 4 * (1 - _T**2), 16 + 12 * (1 - _T**2)], axis=1)
        back = np.stack([reach * _T, brim - 4 + 2 * (1 - _T**2), np.full(9, 8.0)], axis=1)
        painter.fill(view.outline(np.concatenate([edge, back[::-1]])), shade(colour, 0.7))


def _hand(painter: Painter, view: View, random: np.random.Generator) -> None:
    """A hand or a thing held before the face: a few rounded fingers from one side."""
    colour = blend(random.uniform(0, 255, 3).tolist(), (190, 140, 110), float(random.uniform(0.3, 1)))
    angle = random.uniform(0, 2 * np.pi)
    inward = -np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-inward[1], inward[0]])
    root = -inward * 52 + across * random.uniform(-12, 12)
    for finger in range(4):
        start = root + across * (finger - 1.5) * 8.0
        tip = start + inward * random.uniform(14, 36)
        painter.stroke(view.rigid(np.stack([np.append(start, 34.0), np.append(tip, 34.0)])), shade(colour, 0.75), 9.0)
        painter.stroke(view.rigid(np.stack([np.append(start, 34.0), np.append(tip, 34.0)])), colour, 7.5)
