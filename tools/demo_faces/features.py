"""Drawing what a person is known by: head, ears, eyes, brows, nose, mouth, skin, beard.

Each function draws one part of an Identity as a Scene shows it through a View. Proven by
tests/tools/test_make_demo_data.py.
"""

import numpy as np

from tools.demo_faces.geometry import View, path, smooth
from tools.demo_faces.identity import Identity, blend, shade
from tools.demo_faces.painter import Painter
from tools.demo_faces.scene import Scene

_T = np.linspace(-1, 1, 13)  # along a lid, a brow, a lip
_ROUND = np.stack([np.cos(np.linspace(0, 2 * np.pi, 13)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 13)[:-1])], axis=1)
_SOCKET = np.array([0.0, -2.5]) + _ROUND * (9.0, 5.5)
_BAG = np.array([0.0, 6.0]) + _ROUND * (6.5, 2.2)
_CHEEK = np.array([20.0, 2.0]) + _ROUND * (8.0, 6.0)
_UNDER_LIP = _ROUND * (8.0, 1.8)
_CLEFT = _ROUND * (1.2, 3.0)
_HOLLOW = np.array([[31, 2], [24, 12], [17, 24], [24, 22], [33, 8]])  # below a cheekbone
_MOUSTACHE = np.array([[-1, 4], [-0.5, -2.5], [0, -3], [0.5, -2.5], [1, 4], [0.4, 1], [0, 0.6], [-0.4, 1]])
_WING = np.array([[0.82, -4.6], [1.02, -2.2], [0.98, 0.2], [0.66, 1.0]])
_UNDER_NOSE = np.array([[-0.3, 0.2], [0.0, 1.0], [0.3, 0.2]])
_LID = (1 - _T**2) ** 0.75  # the shape of an upper lid
_BAND = 1 - _T**4
_SIDES = (-1.0, 1.0)


def landmarks(face: Identity, scene: Scene, view: View) -> np.ndarray:
    """The five landmarks float64 [5, 2] on the canvas: eyes, nose tip, mouth corners, picture's left first."""
    eye_x, eye_y = face["eye_distance"], face["eye_y"]
    eyes = view.surface(np.array([[-eye_x, eye_y], [eye_x, eye_y]]), -2.0)
    nose = view.surface(nose_tip(face), face["nose_lift"])
    corners = mouth_corners(face, scene)
    return np.concatenate([eyes, nose, view.surface(corners)])


def nose_tip(face: Identity) -> np.ndarray:
    """Position float [1, 2] of the tip of the nose on the face."""
    return np.array([[face["skew_nose"] * 0.7, face["eye_y"] + face["nose_length"]]])


def mouth_corners(face: Identity, scene: Scene) -> np.ndarray:
    """Positions float [2, 2] of the mouth's corners on the face."""
    half = face["mouth_width"] * (1 + 0.13 * scene.smile - 0.12 * scene.mouth_open)
    y = face["mouth_y"] + 1.5 - 2.2 * scene.smile + face["mouth_tilt"] * 0.6 + 1.5 * scene.mouth_open
    skew = face["skew_mouth"] * 0.5
    return np.array([[-half, y - skew], [half, y + skew]])


def head_outline(face: Identity, scene: Scene) -> np.ndarray:
    """Control points float [14, 3] of the head's contour: from the chin up the right side and down the left."""
    chin = face["chin_y"] + 4.5 * scene.mouth_open
    temple, cheek, jaw = face["temple_width"], face["cheek_width"], face["jaw_width"]
    right = np.array([
        [face["chin_width"], chin - 2.0, 10.0],
        [(jaw + face["chin_width"]) / 2 + 1.0, (chin + face["jaw_y"]) / 2 + 2.0, 6.0],
        [jaw, face["jaw_y"], 2.0],
        [cheek, face["cheek_y"], 0.0],
        [temple, -28.0, 0.0],
        [temple * 0.86, -46.0, -2.0],
    ])
    left = right[::-1] * (-1.0, 1.0, 1.0)
    chin_middle = np.array([[0.0, chin, 12.0]])
    top = np.array([[0.0, -62.0, -4.0]])
    return np.concatenate([chin_middle, right, top, left])


def draw_head(painter: Painter, face: Identity, scene: Scene, view: View) -> None:
    """Ears, then the skin of the head over them."""
    for side in _SIDES:
        size, out = face["ear_size"], face["ear_out"]
        centre = np.array([side * (face["cheek_width"] - 3.0 + out * 0.5), -9.0, -6.0])
        rim = np.concatenate([_ROUND * (size * 0.32 + out * 0.55, size), np.zeros((12, 1))], axis=1)
        painter.fill(view.rigid(centre + rim), shade(face.skin, 0.86))
        painter.stroke(view.rigid(centre + rim * (0.55, 0.62, 1)), shade(face.skin, 0.62), 0.9, closed=True)
    painter.fill(smooth(view.outline(head_outline(face, scene))), face.skin)


def draw_relief(painter: Painter, face: Identity, scene: Scene, view: View) -> None:
    """The soft shadows of skin and bone: sockets, cheeks, nose, chin, blush; then the beard's shadow."""
    shapes: list[tuple[np.ndarray, float | np.ndarray, float | tuple[float, float, float]]] = []  # points, lift, factor
    red = 1.03 - 0.2 * max(face["blush"], 0.0)
    for side in _SIDES:
        eye = np.array([side * face["eye_distance"], face["eye_y"]])
        shapes.append((eye + _SOCKET, 0.0, 0.86))
        if face["eye_bags"] > 0:
            shapes.append((eye + _BAG, 0.0, 1 - 0.24 * face["eye_bags"]))
        shapes.append((_CHEEK * (side, 1.0), 0.0, (1.05, red, red)))
        if face["hollow_cheeks"] > 0:
            shapes.append((_HOLLOW * (side, 1.0), 0.0, 1 - 0.26 * face["hollow_cheeks"]))
    shapes += _nose_relief(face)
    lip = face["mouth_y"] + face["lip_lower"] + 5.0 + 4 * scene.mouth_open
    shapes.append((np.array([0, lip]) + _UNDER_LIP, 0.0, 0.82))
    if face["chin_cleft"] > 0:
        shapes.append((np.array([0, face["chin_y"] - 4]) + _CLEFT, 0.0, 1 - 0.3 * face["chin_cleft"]))
    points, lifts, factors = zip(*shapes, strict=True)
    for polygon, factor in zip(view.surfaces(points, lifts), factors, strict=True):
        painter.shadow(polygon, factor)
    _beard(painter, face, scene, view)
    painter.settle(1.5)


def _nose_relief(face: Identity) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Points, lifts and factors of the nose's flanks, in shadow, and of its ridge."""
    top, length, lift = face["eye_y"] - 2.0, face["nose_length"], face["nose_lift"]
    middle, bridge, tip = face["skew_nose"], face["bridge_width"], face["nose_width"]
    shapes = []
    for side in _SIDES:
        flank = np.array([
            [side * bridge, top],
            [side * bridge + middle * 0.6, top + length * 0.5],
            [side * tip * 0.72 + middle, top + length],
            [side * (tip + 2.5) + middle, top + length + 1.0],
        ])
        shapes.append((flank, np.array([0.3, 0.6, 0.9, 0.5]) * lift, 0.83))
    ridge = np.array([
        [-bridge * 0.4, top + 3], [bridge * 0.4, top + 3],
        [bridge * 0.5 + middle, top + length], [-bridge * 0.5 + middle, top + length],
    ])  # fmt: skip
    return [*shapes, (ridge, np.array([0.35, 0.35, 1.0, 1.0]) * lift, 1.13)]


def _beard(painter: Painter, face: Identity, scene: Scene, view: View) -> None:
    colour = np.array(face.hair) / np.maximum(np.array(face.skin), 1.0)
    density = min(max(face["beard"], 0.0) * 1.5, 0.92)
    mouth, chin = face["mouth_y"], face["chin_y"] + 4.5 * scene.mouth_open
    if density > 0.03:
        top = mouth - 4.0 + 9.0 * (1 - face["beard_cheek"])
        jaw = face["jaw_width"]
        right = np.array([
            [jaw + 5, top - 14], [jaw * 0.84, top], [face["mouth_width"] * 0.95 + 1, mouth + 1],
            [face["mouth_width"] * 0.6, mouth + 6 + 3 * scene.mouth_open], [2, mouth + 8 + 3 * scene.mouth_open],
        ])  # fmt: skip
        outer = np.array([[2, chin + 2], [jaw * 0.7, chin - 2], [jaw + 4, face["jaw_y"]]])
        half = np.concatenate([right, outer])
        factor = 1 - density * (1 - colour)
        for side in _SIDES:
            painter.shadow(view.surface(half * (side, 1.0)), factor.tolist())
    density = min(max(face["moustache"], 0.0) * 1.5, 0.92)
    if density > 0.03:
        place = np.array([0.0, mouth - face["lip_upper"] - 1.2])
        shape = place + _MOUSTACHE * (face["mouth_width"] * 0.95, 1.0)
        painter.shadow(view.surface(shape, 2.0), (1 - density * (1 - colour)).tolist())


def draw_marks(painter: Painter, face: Identity, scene: Scene, view: View) -> None:
    """Freckles, moles, wrinkles and folds."""
    if len(face.freckles):
        colour = blend(face.skin, (120, 66, 36), 0.45)
        for spot in view.surface(face.freckles, 1.0):
            painter.dot(spot, 0.62, colour)
    if len(face.moles):
        spots = view.surface(face.moles[:, :2], 1.0)
        for spot, radius in zip(spots, face.moles[:, 2], strict=True):
            painter.dot(spot, float(radius), shade(face.skin, 0.38))
    line = shade(face.skin, 1 - 0.34 * max(face["wrinkles"], 0.0))
    if face["wrinkles"] > 0.1:
        for y in (-44.0, -39.5, -35.5):
            wave = path(_T * 17, y - 1.6 * (1 - _T**2) - 0.4 * scene.brow_raise)
            painter.stroke(view.surface(wave), line, 0.9)
    depth = max(face["folds"], 0.0) + 0.4 * max(scene.smile, 0.0)
    if depth > 0.1:
        corner = mouth_corners(face, scene)[1, 0]
        for side in _SIDES:
            fold = np.array([
                [face["nose_width"] + 1.5, face["eye_y"] + face["nose_length"] - 1],
                [corner * 0.9 + 2.0, face["mouth_y"] - 6],
                [corner + 4.0, face["mouth_y"] + 3],
            ]) * (side, 1.0)  # fmt: skip
            painter.stroke(smooth(view.surface(fold), closed=False), shade(face.skin, 1 - 0.28 * depth), 1.0)


def draw_eyes(painter: Painter, face: Identity, scene: Scene, view: View) -> None:
    """White, iris, pupil, light, lids and lashes of both eyes."""
    for side in _SIDES:
        width = face["eye_width"]
        opening = face["eye_height"] * (1 + side * face["skew_eye"]) * scene.lids * (1 - 0.18 * max(scene.smile, 0.0))
        x = side * (face["eye_distance"] + width * _T)
        tilt = face["eye_y"] + face["eye_slant"] * width * _T  # the outer end (t = 1) is up when the slant is negative
        above = tilt - opening * _LID * (1 + 0.45 * face["eye_peak"] * _T)
        below = tilt + opening * face["eye_lower"] * (1 - _T**2)
        crease = above - (1.6 + 1.8 * max(face["crease"], 0.0))
        looks_at = np.array([scene.gaze]) * (0.3 * width, 0.3 * opening) - (0.0, 0.15 * opening)
        iris = looks_at + np.array([side * face["eye_distance"], face["eye_y"]])
        # The bands beside the lids' edges are skin, which covers what the iris has beyond the eye.
        rows = (above, below, above - 3.4 * _BAND, below + 2.6 * _BAND, crease)
        upper, lower, upper_band, lower_band, fold, centre = view.surfaces(
            [*(path(x, row) for row in rows), iris], [-2.0, -2.0, -2.0, -2.0, -1.5, -2.0]
        )
        if opening > 0.8:
            painter.fill(np.concatenate([upper, lower[::-1]]), (236, 232, 228))
            _iris(painter, face, scene, centre[0])
            painter.fill(np.concatenate([upper, upper_band[::-1]]), face.skin)
            painter.fill(np.concatenate([lower, lower_band[::-1]]), shade(face.skin, 0.96))
        painter.stroke(upper, shade(face.skin, 0.3), 1.3)
        painter.stroke(lower, shade(face.skin, 0.66), 0.6)
        if face["crease"] > 0:
            painter.stroke(fold[1:-1], shade(face.skin, 0.62), 0.8)


def _iris(painter: Painter, face: Identity, scene: Scene, centre: np.ndarray) -> None:
    size = face["iris_size"]
    painter.dot(centre, size, shade(face.iris, 0.6))
    painter.dot(centre, size * 0.84, face.iris)
    painter.dot(centre, size * 0.42, (12, 10, 10))
    painter.dot(centre + scene.light_direction[:2] * size * 0.5 * painter.scale, 0.55, (250, 250, 250))


def draw_brows(painter: Painter, face: Identity, scene: Scene, view: View) -> None:
    """Both eyebrows, in the hair's colour, darker."""
    colour = blend(shade(face.hair, 0.72), face.skin, 0.12)
    share = (_T + 1) / 2
    x = face["eye_distance"] + face["brow_inner"] + share * (face["brow_outer"] - face["brow_inner"])
    curve = face["brow_slant"] * (share - 0.5) - face["brow_arch"] * (1 - (share * 2 - 1.25) ** 2)
    half = face["brow_thick"] * (1 - face["brow_taper"] * share**2) * np.minimum(share * 8 + 0.6, 1.0)
    edges = []
    for side in _SIDES:
        y = curve + (face["eye_y"] - face["brow_gap"] - scene.brow_raise + side * face["skew_brow"] * 0.5)
        edges += [path(side * x, y - half), path(side * x, y + half * 0.8)]
    placed = view.surfaces(edges, [1.0] * 4)
    for upper, lower in (placed[:2], placed[2:]):
        painter.fill(np.concatenate([upper, lower[::-1]]), colour)


def draw_nose(painter: Painter, face: Identity, scene: Scene, view: View) -> None:
    """Wings, nostrils and tip of the nose."""
    tip = nose_tip(face)
    width, ball, lift = face["nose_width"], face["nose_tip"], face["nose_lift"]
    base = tip + np.array([0.0, ball * 0.8 + 1.0 - face["nose_hook"]])
    line = shade(face.skin, 0.58)
    hole = _ROUND * (width * 0.22, face["nostril"] * 0.8) + (width * 0.5, 0.5)
    under = base + _UNDER_NOSE * (width, 1.0 + face["nose_hook"])
    shine = tip - (0.0, ball * 0.3)
    mirrored = [base + shape * (side, 1.0) for shape in (_WING * (width, 1.0), hole) for side in _SIDES]
    *wings, left_hole, right_hole, bottom, light = view.surfaces(
        [*mirrored, under, shine], [lift * 0.35, lift * 0.35, lift * 0.55, lift * 0.55, lift * 0.8, lift]
    )
    for wing in wings:
        painter.stroke(smooth(wing, closed=False), line, 1.0)
    for nostril in (left_hole, right_hole):
        painter.fill(nostril, shade(face.skin, 0.34))
    painter.stroke(smooth(bottom, closed=False), line, 0.9)
    painter.dot(light[0] + scene.light_direction[:2] * painter.scale, ball * 0.5, shade(face.skin, 1.12))


def draw_mouth(painter: Painter, face: Identity, scene: Scene, view: View) -> None:
    """Lips, the line between them, and the teeth of an open mouth."""
    corner = mouth_corners(face, scene)
    half = corner[1, 0]
    x = half * _T
    y = face["mouth_y"] + (corner[1, 1] - face["mouth_y"]) * _T**2 + 0.5 * face["skew_mouth"] * _T
    fullness = 1 - np.abs(_T) ** 2.2
    thin = 1 - 0.22 * max(scene.smile, 0.0)
    bow = 1 - 0.55 * face["cupid"] * np.exp(-((_T / 0.16) ** 2))
    gap = 8.5 * scene.mouth_open * fullness
    top = y - face["lip_upper"] * thin * fullness * bow - 0.25 * gap
    upper_line = y - 0.25 * gap
    lower_line = y + 0.75 * gap
    bottom = lower_line + face["lip_lower"] * thin * (1 - np.abs(_T) ** 2.6)
    teeth = np.minimum(upper_line + 3.0, lower_line)
    edges = [path(x, rows) for rows in (top, upper_line, lower_line, bottom, teeth)]
    above, upper, lower, below, bite = view.surfaces(edges, [1.5, 1.5, 1.5, 1.5, 1.0])
    if scene.mouth_open > 0.08:
        painter.fill(np.concatenate([upper, lower[::-1]]), (58, 22, 24))
        painter.fill(np.concatenate([upper[2:-2], bite[2:-2][::-1]]), (232, 228, 216))
    painter.fill(np.concatenate([above, upper[::-1]]), shade(face.lips, 0.9))
    painter.fill(np.concatenate([lower, below[::-1]]), face.lips)
    painter.stroke(upper, shade(face.lips, 0.5), 0.8)
    if face["philtrum"] > 0.1:
        lip = face["mouth_y"] - face["lip_upper"]
        groove = np.array([[0.0, lip - 5.0], [0.0, lip]])
        painter.stroke(view.surface(groove, 2.0), shade(face.skin, 1 - 0.26 * face["philtrum"]), 1.4)
