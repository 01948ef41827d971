"""recognition/data/align.py against known transforms, Umeyama's form by SVD, and the real crops."""

import cv2
import numpy as np
import pytest

from recognition.data.align import TEMPLATE, align_face, similarity_transform


def similarity(scale, degrees, shift):
    turn = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.c_[linear, shift]


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def umeyama(points, target):
    """Umeyama 1991, equations 40-43, with its SVD."""
    p, q = points - points.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(q.T @ p / len(p))
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / p.var(axis=0).sum()
    return np.c_[scale * rotation, target.mean(0) - scale * rotation @ points.mean(0)]


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"), [(1, 0, (0, 0)), (2.5, 0, (10, -3)), (0.3, 37, (100, 60)), (1.2, 179, (-40, 7))]
)
def test_a_known_transform_is_found_back(scale, degrees, shift):
    inverse = similarity(scale, degrees, shift)
    found = similarity_transform(apply(inverse, TEMPLATE))
    np.testing.assert_allclose(apply(found, apply(inverse, TEMPLATE)), TEMPLATE, atol=1e-10)
    np.testing.assert_allclose(np.linalg.det(found[:, :2]), 1 / scale**2, rtol=1e-12)


@pytest.mark.parametrize("noise", [1, 10, 60])
def test_it_is_umeyamas(noise):
    generator = np.random.default_rng(noise)
    for _ in range(50):
        points = TEMPLATE * 2 + generator.normal(0, noise, TEMPLATE.shape)
        np.testing.assert_allclose(similarity_transform(points), umeyama(points, TEMPLATE), atol=1e-9)


def test_it_never_mirrors():
    mirrored = TEMPLATE * [-1, 1] + [112, 0]
    found = similarity_transform(mirrored)
    assert np.linalg.det(found[:, :2]) > 0
    np.testing.assert_allclose(found, umeyama(mirrored, TEMPLATE), atol=1e-10)


def test_no_other_similarity_is_nearer():
    generator = np.random.default_rng(3)
    points = TEMPLATE + generator.normal(0, 5, TEMPLATE.shape)
    best = similarity_transform(points)
    least = np.square(apply(best, points) - TEMPLATE).sum()
    for _ in range(200):
        other = best + similarity(*generator.normal(0, 1e-3, 2), generator.normal(0, 0.1, 2))
        assert np.square(apply(other, points) - TEMPLATE).sum() >= least


@pytest.mark.parametrize(
    ("points", "text"),
    [
        (np.full((5, 2), 17.0), "coincide"),
        (np.full((5, 2), np.nan), "not finite"),
        (TEMPLATE[:4], r"\[5, 2\], got \[4, 2\]"),
        (TEMPLATE.T, r"got \[2, 5\]"),
    ],
)
def test_impossible_landmarks_are_refused(points, text):
    with pytest.raises(ValueError, match=text):
        similarity_transform(points)


def test_pixels_land_where_the_landmarks_say():
    # Five coloured dots at the landmarks of a turned and enlarged face.
    inverse = similarity(2.0, 25, (90, -20))
    landmarks = apply(inverse, TEMPLATE)
    image = np.zeros((320, 400, 3), np.uint8)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    for (x, y), colour in zip(landmarks, colours, strict=True):
        cv2.circle(image, (round(x), round(y)), 7, colour, -1)
    crop = align_face(image, landmarks)
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.uint8
    for (x, y), colour in zip(TEMPLATE, colours, strict=True):
        assert crop[round(y), round(x)].tolist() == list(colour)


def test_an_aligned_image_stays_and_beyond_the_border_is_black():
    image = np.random.default_rng(0).integers(1, 256, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_array_equal(align_face(image, TEMPLATE), image)
    shifted = align_face(image, TEMPLATE - [10, 0])  # the crop begins 10 pixels left of the image
    assert not shifted[:, :10].any()
    np.testing.assert_array_equal(shifted[:, 10:], image[:, :-10])
