"""Who a drawn face is: some dozens of numbers, a pure function of (seed, split, identity).

Lengths are pixels of the aligned 112×112 picture with the origin between eyes and mouth (TEMPLATE's centre column,
the row of the nose tip); x points to the picture's right, y down. Nothing of a picture's circumstances (background,
light, quality, glasses, hat) is here, so that none of them can give an identity away.
Proven by tests/tools/test_make_demo_data.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = {"train": 1, "verification": 2, "degraded": 3, "ijb": 4}  # no identity is in two of them

# name: (lowest, highest); drawn uniformly. Widths of paired features are half widths.
PARAMETERS: dict[str, tuple[float, float]] = {
    # the head
    "temple_width": (28.0, 36.0),
    "cheek_width": (29.0, 38.5),
    "cheek_y": (-8.0, 8.0),
    "jaw_width": (19.0, 32.0),
    "jaw_y": (18.0, 29.0),
    "chin_width": (6.0, 16.0),
    "chin_y": (37.0, 50.0),
    "chin_cleft": (-1.0, 1.0),
    "hollow_cheeks": (-0.6, 1.0),
    "ear_size": (6.0, 12.0),
    "ear_out": (1.0, 6.5),
    # the eyes
    "eye_distance": (14.0, 21.5),
    "eye_y": (-23.0, -17.0),
    "eye_width": (4.8, 8.0),
    "eye_height": (1.7, 4.3),
    "eye_slant": (-0.3, 0.24),
    "eye_peak": (-0.6, 0.6),
    "eye_lower": (0.4, 1.0),
    "crease": (-0.8, 1.0),
    "iris_size": (2.0, 3.1),
    "iris_light": (0.0, 1.0),
    "iris_hue": (0.0, 1.0),
    "eye_bags": (-0.8, 1.0),
    # the brows
    "brow_gap": (4.6, 10.0),
    "brow_inner": (-10.0, -3.5),
    "brow_outer": (8.0, 14.0),
    "brow_arch": (-1.2, 4.4),
    "brow_slant": (-2.8, 3.2),
    "brow_thick": (0.7, 3.3),
    "brow_taper": (0.1, 0.95),
    # the nose
    "nose_length": (15.5, 24.5),
    "nose_width": (4.8, 10.6),
    "bridge_width": (1.8, 5.0),
    "nose_lift": (4.0, 13.0),
    "nose_tip": (1.6, 4.4),
    "nostril": (0.6, 2.1),
    "nose_hook": (-1.0, 1.0),
    # the mouth
    "mouth_y": (14.5, 22.5),
    "mouth_width": (9.5, 18.0),
    "lip_upper": (0.9, 4.4),
    "lip_lower": (1.5, 5.6),
    "cupid": (0.0, 1.0),
    "mouth_tilt": (-2.4, 2.0),
    "lip_red": (0.0, 1.0),
    "lip_dark": (0.0, 1.0),
    "philtrum": (-0.5, 1.0),
    # skin and age
    "melanin": (0.0, 1.0),
    "undertone": (-1.0, 1.0),
    "blush": (-0.5, 1.0),
    "freckles": (-1.6, 1.0),
    "moles": (-0.5, 3.5),
    "wrinkles": (-0.9, 1.0),
    "folds": (-0.5, 1.0),
    # the hair
    "hair_dark": (0.0, 1.0),
    "hair_red": (0.0, 1.0),
    "hair_grey": (-2.2, 1.0),
    "hair_amount": (-0.12, 1.0),
    "hair_volume": (2.0, 15.0),
    "hair_length": (-30.0, 55.0),
    "hairline": (-52.0, -39.0),
    "hairline_peak": (-5.0, 6.0),
    "receding": (-7.0, 9.0),
    "parting": (-22.0, 22.0),
    "fringe": (-9.0, 13.0),
    "curl": (-1.0, 2.4),
    # the beard
    "beard": (-1.6, 1.0),
    "beard_cheek": (0.0, 1.0),
    "moustache": (-1.4, 1.0),
    # no face is the same on both sides
    "skew_brow": (-1.8, 1.8),
    "skew_eye": (-0.16, 0.16),
    "skew_nose": (-1.8, 1.8),
    "skew_mouth": (-1.6, 1.6),
}

Colour = tuple[float, float, float]  # RGB, 0..255


@dataclass(frozen=True)
class Identity:
    """One person: the numbers of PARAMETERS, the colours that follow from them, and the marks on the skin."""

    value: dict[str, float]
    skin: Colour
    hair: Colour
    lips: Colour
    iris: Colour
    moles: np.ndarray  # float [n, 3]: x, y, radius
    freckles: np.ndarray  # float [n, 2]: x, y

    def __getitem__(self, name: str) -> float:
        return self.value[name]


def blend(first: Sequence[float], second: Sequence[float], share: float) -> Colour:
    """Colour on the line from `first` (share 0) to `second` (share 1)."""
    (red, green, blue), (to_red, to_green, to_blue) = first, second
    return red + share * (to_red - red), green + share * (to_green - green), blue + share * (to_blue - blue)


def shade(colour: Sequence[float], factor: float) -> Colour:
    """Colour made darker (factor below 1) or lighter; OpenCV clips what goes above 255."""
    red, green, blue = colour
    return red * factor, green * factor, blue * factor


def make_identity(seed: int, split: str, number: int) -> Identity:
    """The person `number` of a split."""
    # SeedSequence fills a short key with zeros, so the fourth word tells an identity (0) from its pictures (1, 2, …).
    random = np.random.default_rng((seed, SPLITS[split], number, 0))
    bounds = np.array(list(PARAMETERS.values()))
    value = dict(zip(PARAMETERS, random.uniform(bounds[:, 0], bounds[:, 1]).tolist(), strict=True))
    freckle_count = int(34 * max(value["freckles"], 0.0))
    side = random.choice([-1.0, 1.0], freckle_count)
    freckles = np.stack([side * random.uniform(2, 24, freckle_count), random.uniform(-13, 6, freckle_count)], axis=1)
    mole_count = int(max(value["moles"], 0.0))
    moles = random.uniform((-25, -34, 0.7), (25, 34, 1.5), (mole_count, 3))
    skin = _skin(value)
    return Identity(value, skin, _hair(value), _lips(value, skin), _iris(value), moles, freckles)


def _skin(value: dict[str, float]) -> Colour:
    light, medium, dark = (246, 214, 192), (206, 154, 118), (98, 64, 46)
    melanin = value["melanin"]
    base = blend(light, medium, melanin * 2) if melanin < 0.5 else blend(medium, dark, melanin * 2 - 1)
    undertone = value["undertone"]
    return base[0] * (1 + 0.02 * undertone), base[1] * (1 + 0.03 * undertone), base[2] * (1 - 0.07 * undertone)


def _hair(value: dict[str, float]) -> Colour:
    light = blend((214, 176, 108), (178, 84, 36), value["hair_red"])
    dark = blend((30, 24, 22), (70, 34, 20), value["hair_red"])
    return blend(blend(light, dark, value["hair_dark"]), (176, 174, 172), max(value["hair_grey"], 0.0))


def _lips(value: dict[str, float], skin: Colour) -> Colour:
    red = blend(skin, (190, 62, 70), 0.3 + 0.6 * value["lip_red"])
    return shade(red, 1.0 - 0.35 * value["lip_dark"])


def _iris(value: dict[str, float]) -> Colour:
    brown = blend((40, 24, 14), (122, 78, 36), value["iris_hue"])
    pale = blend((84, 130, 170), (104, 138, 84), value["iris_hue"])
    return blend(brown, pale, min(max(value["iris_light"] * 2.2 - 0.9, 0.0), 1.0))
