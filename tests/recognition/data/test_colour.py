"""The colour matrices against the usual definitions, written out one operation at a time."""

import cv2
import numpy as np
import pytest

from recognition.data.colour import LUMA, apply_colour, colour_matrices

PLAIN = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "grey": False}


def matrix(**given: float) -> np.ndarray:
    return colour_matrices(**{name: np.array([given.get(name, value)]) for name, value in PLAIN.items()})[0]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(int)


def test_nothing_asked_for_is_the_identity(image):
    assert np.abs(matrix() - np.eye(3, 4)).max() < 1e-6
    assert np.array_equal(apply_colour(image, matrix()), image)
    assert np.array_equal(apply_colour(image, matrix(hue=360.0)), image)


def test_each_is_its_definition(image):
    x = image.astype(float)
    luma = (x @ LUMA)[..., None]
    factor = 1.2941  # times a whole number, seldom halfway between two
    expected = {
        "brightness": factor * x, "contrast": factor * (x - 127.5) + 127.5, "saturation": luma + factor * (x - luma),
        "grey": np.repeat(luma, 3, axis=2),
    }  # fmt: skip
    for name, values in expected.items():
        result = apply_colour(image, matrix(**{name: True if name == "grey" else factor}))
        assert np.abs(result.astype(int) - rounded(values)).max() <= 1, name
        assert (result != rounded(values)).mean() < 1e-3, name


def test_hue_turns_the_blue_and_red_differences_of_jpegs_colour_space():
    colours = np.random.default_rng(1).integers(80, 176, (200, 1, 3), np.uint8)  # turned, they stay in range
    turned = apply_colour(colours, matrix(hue=30.0))
    before, after = (cv2.cvtColor(c, cv2.COLOR_RGB2YCrCb)[:, 0].astype(float) for c in (colours, turned))
    assert np.abs(after[:, 0] - before[:, 0]).max() <= 1
    angle, planes = np.deg2rad(30), [values[:, 2] - 128 + 1j * (values[:, 1] - 128) for values in (before, after)]
    assert np.abs(planes[1] - planes[0] * np.exp(1j * angle)).max() < 2
    undone = apply_colour(turned, matrix(hue=-30.0))
    assert np.abs(undone.astype(int) - colours).max() <= 2


def test_grey_comes_last_and_equals_opencv(image):
    grey = apply_colour(image, matrix(grey=True))
    assert (np.abs(grey.astype(int) - cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]) <= 1).all()
    all_of_it = apply_colour(image, matrix(grey=True, hue=90.0, saturation=2.0, brightness=0.5))
    assert (all_of_it[..., :1] == all_of_it).all()
    assert np.abs(all_of_it.astype(int) - rounded(0.5 * (image @ LUMA))[..., None]).max() <= 1


def test_matrices_of_a_batch_are_those_of_its_images():
    rng = np.random.default_rng(0)
    batch = {name: rng.uniform(0.5, 1.5, 7) for name in ("brightness", "contrast", "saturation", "hue")}
    grey = rng.random(7) < 0.5
    together = colour_matrices(**batch, grey=grey)
    assert together.shape == (7, 3, 4)
    assert together.dtype == np.float32
    for row in range(7):
        alone = matrix(**{name: values[row] for name, values in batch.items()}, grey=grey[row])
        assert np.allclose(alone, together[row], rtol=1e-6, atol=1e-6)
