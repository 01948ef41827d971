"""The parameters of augmentation: independent of each other, of epochs and of seeds, and within their ranges."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from recognition.data.augmentation import (
    IMAGE_SIDE,
    INTERPOLATIONS,
    UP_INTERPOLATIONS,
    Augmentation,
    Draws,
    draw_augmentation,
)
from recognition.data.plan import Plan
from recognition.errors import SettingsError

ALWAYS = Augmentation(crop=1.0, downsample=1.0)


def assert_chi_square_fits(counts: np.ndarray, expected: float) -> None:
    """Counts of equally likely cells: chi² within five standard deviations of its mean."""
    degrees = counts.size - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - degrees) < 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("other", [(0, 1), (1, 0), (1, 1)])
def test_draws_of_one_sample_in_other_epochs_and_seeds_are_independent(other):
    sample, bins = np.arange(50_000), 8
    one = draw_augmentation(Augmentation(crop=1, downsample=1), 0, 0, sample)
    two = draw_augmentation(Augmentation(crop=1, downsample=1), *other, sample)
    pairs = (one.flip * 2 + two.flip).astype(int)
    assert_chi_square_fits(np.bincount(pairs, minlength=4), len(sample) / 4)
    height = [np.argsort(np.argsort(draw.crop[:, 2], kind="stable")) * bins // len(sample) for draw in (one, two)]
    assert_chi_square_fits(np.bincount(height[0] * bins + height[1], minlength=bins**2), len(sample) / bins**2)


def test_the_draws_of_a_sample_are_independent_of_each_other():
    sample = np.arange(50_000)
    draw = draw_augmentation(ALWAYS, 0, 0, sample)
    columns = np.stack([draw.flip, *draw.crop.T, draw.side, draw.down, draw.up]).astype(float)
    correlation = np.corrcoef(columns)
    correlation[1:5, 1:5] = 0  # the rectangle's own numbers depend on each other
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(sample))
    assert_chi_square_fits(np.bincount(draw.down), len(sample) / len(INTERPOLATIONS))
    assert_chi_square_fits(np.bincount(draw.up), len(sample) / len(UP_INTERPOLATIONS))


def test_probabilities_hold():
    sample = np.arange(20_000)
    draw = draw_augmentation(Augmentation(0.5, crop=0.2, downsample=0.3), 1, 2, sample)
    for what, expected in ((draw.flip, 0.5), (draw.is_cropped, 0.2), (draw.is_downsampled, 0.3)):
        # a rectangle or side drawn as the whole image, as 1 in 150 sides is, changes nothing
        assert abs(what.mean() - expected) < 0.015


def test_one_probability_does_not_change_what_else_is_drawn():
    sample = np.arange(1000)
    both = draw_augmentation(ALWAYS, 1, 1, sample)
    no_crop = draw_augmentation(replace(ALWAYS, crop=0.0), 1, 1, sample)
    assert (no_crop.crop == (0, 0, IMAGE_SIDE, IMAGE_SIDE)).all()
    others = [field.name for field in fields(Draws) if field.name != "crop"]
    assert all(np.array_equal(getattr(both, name), getattr(no_crop, name)) for name in others)


def test_nothing_but_flips_by_default():
    batch = Plan(1000, 500, 0, 1, 0, Augmentation()).batch(0).draws
    assert not batch.is_cropped.any()
    assert not batch.is_downsampled.any()
    assert 200 < batch.flip.sum() < 300


def test_rectangles_lie_in_the_image_and_keep_to_their_ranges():
    sample = np.arange(50_000)
    top, left, height, width = draw_augmentation(ALWAYS, 0, 0, sample).crop.T.astype(float)
    assert top.min() == left.min() == 0
    assert (top + height).max() == (left + width).max() == IMAGE_SIDE
    # the size is rounded to whole pixels: half a pixel of a side of at least 43
    area, ratio = height * width / IMAGE_SIDE**2, width / height
    assert area.min() > 0.2 * (1 - 0.5 / 43) ** 2
    assert area.max() <= 1
    assert ratio.min() > 3 / 4 * (1 - 1 / 43)
    assert ratio.max() < 4 / 3 * (1 + 1 / 43)
    assert np.abs(np.quantile(area, [0.25, 0.5, 0.75]) - [0.4, 0.6, 0.8]).max() < 0.01
    small = area < 0.5  # every ratio fits, so that the logarithm of the ratio is uniform
    assert np.abs(np.quantile(np.log(ratio[small]), [0.25, 0.5, 0.75]) / math.log(4 / 3) - [-0.5, 0, 0.5]).max() < 0.03


def test_sides_keep_to_their_range():
    side = draw_augmentation(ALWAYS, 0, 0, np.arange(50_000)).side
    assert (side.min(), side.max()) == (22, 112)
    counts = np.bincount(side)[23:112]
    assert_chi_square_fits(counts, counts.mean())


def test_ranges_of_one_value_are_that_value():
    one = Augmentation(crop=1, crop_area=(0.25, 0.25), crop_ratio=(1, 1), downsample=1, downsample_side=(0.5, 0.5))
    draw = draw_augmentation(one, 0, 0, np.arange(100))
    assert (draw.crop[:, 2:] == 56).all()
    assert (draw.side == 56).all()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("flip", -0.1), ("crop", 1.5), ("downsample", math.nan), ("crop_area", (0.0, 1.0)), ("crop_area", (0.9, 0.2)),
        ("downsample_side", (0.5, 1.1)), ("crop_ratio", (1.5, 2.0)), ("crop_ratio", (0.5, math.inf)),
    ],
)
def test_augmentation_that_cannot_be_names_its_setting(setting, value):
    with pytest.raises(SettingsError, match=f"augmentation.{setting} = "):
        Augmentation(**{setting: value})
