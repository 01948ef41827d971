"""The parameters of augmentation: independent of each other, of epochs and of seeds, and within their ranges."""

import math
import zlib
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
EVERYTHING = Augmentation(
    crop=1.0, downsample=1.0, resized_crop=1.0, colour=1.0, greyscale=1.0, blur=1.0, jpeg=1.0, cutout=1.0
)
HAPPENED = {
    "crop": "is_cropped", "downsample": "is_downsampled", "resized_crop": "is_resized_crop", "colour": "is_coloured",
    "greyscale": "is_coloured", "blur": "is_blurred", "jpeg": "is_compressed", "cutout": "is_cut_out",
}  # fmt: skip


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
    draw = draw_augmentation(replace(EVERYTHING, greyscale=0.0), 0, 0, sample)
    rectangles = [*draw.crop.T, *draw.resized.T, *draw.cutout.T, *draw.colour[:, 0, [0, 3]].T]
    columns = np.stack([*rectangles, draw.flip, draw.side, draw.down, draw.up, draw.sigma, draw.quality]).astype(float)
    correlation = np.corrcoef(columns)
    for own in (slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 14)):
        correlation[own, own] = 0  # the numbers of one rectangle or matrix depend on each other
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


@pytest.mark.parametrize("name", HAPPENED)
def test_each_happens_as_often_as_its_probability_says(name):
    samples, p = 20_000, 0.3
    # ranges whose every value changes something
    some = Augmentation(**{name: p}, crop_area=(0.2, 0.8), resized_crop_area=(0.2, 0.8), downsample_side=(0.2, 0.9))
    draw = draw_augmentation(some, 1, 2, np.arange(samples))
    for what in set(HAPPENED.values()):
        happened = getattr(draw, what).sum()
        if what == HAPPENED[name]:
            assert abs(happened - p * samples) < 5 * math.sqrt(samples * p * (1 - p)), what
        else:
            assert happened == 0


@pytest.mark.parametrize("name", HAPPENED)
def test_one_probability_does_not_change_what_else_is_drawn(name):
    sample = np.arange(1000)
    everything = replace(EVERYTHING, greyscale=0.0) if name == "colour" else EVERYTHING
    both = draw_augmentation(everything, 1, 1, sample)
    one_less = draw_augmentation(replace(everything, **{name: 0.0}), 1, 1, sample)
    field = {"downsample": "side", "resized_crop": "resized", "greyscale": "colour", "blur": "sigma",
             "jpeg": "quality"}.get(name, name)  # fmt: skip
    changed = {f.name for f in fields(Draws) if not np.array_equal(getattr(both, f.name), getattr(one_less, f.name))}
    assert changed == {field}


def test_draws_do_not_depend_on_what_is_drawn_with_them():
    whole = draw_augmentation(EVERYTHING, 4, 1, np.arange(200))
    order = np.random.default_rng(0).permutation(200)
    for rows in (order, order[:1], order[7:60]):
        part = draw_augmentation(EVERYTHING, 4, 1, rows)
        assert all(np.array_equal(getattr(part, f.name), getattr(whole, f.name)[rows]) for f in fields(Draws))


def test_draws_are_those_of_runs_that_began_before():
    """Recorded when flip, crop and down-sampling were all there was: a run that goes on sees what it would have."""
    sample = np.array([0, 1, 2, 7, 12345, 41_999_999])
    draw = draw_augmentation(ALWAYS, 5, 3, sample)
    assert draw.flip.tolist() == [True, False, True, True, False, False]
    assert draw.crop.tolist() == [[18, 9, 82, 103], [17, 0, 78, 89], [34, 4, 53, 59], [24, 37, 75, 71],
                                  [21, 11, 73, 75], [0, 12, 108, 96]]  # fmt: skip
    assert draw.side.tolist() == [83, 25, 85, 47, 99, 79]
    assert draw.down.tolist() == [0, 1, 4, 3, 4, 4]
    assert draw.up.tolist() == [2, 0, 0, 0, 1, 0]
    for augmentation, recorded in ((Augmentation(crop=0.2, downsample=0.2), 4289506713), (ALWAYS, 2726671663),
                                   (EVERYTHING, 2726671663)):  # fmt: skip
        draw = draw_augmentation(augmentation, 5, 3, np.arange(10_000))
        parts = [getattr(draw, name).tobytes() for name in ("flip", "crop", "side", "down", "up")]
        assert zlib.crc32(b"".join(parts)) == recorded


def test_what_is_new_is_off_by_default():
    draw = draw_augmentation(Augmentation(crop=0.2, downsample=0.2), 0, 0, np.arange(2000))
    for what in ("is_resized_crop", "is_coloured", "is_blurred", "is_compressed", "is_cut_out"):
        assert not getattr(draw, what).any()


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


def test_the_other_ranges_are_kept_to():
    draw = draw_augmentation(EVERYTHING, 0, 0, np.arange(50_000))
    assert (round(float(draw.sigma.min()), 3), round(float(draw.sigma.max()), 3)) == (0.5, 2.0)
    assert (draw.quality.min(), draw.quality.max()) == (20, 90)
    assert_chi_square_fits(np.bincount(draw.quality)[20:], 50_000 / 71)
    for rectangle, least, most in ((draw.resized, 0.5, 1.0), (draw.cutout, 0.02, 0.25)):
        top, left, height, width = rectangle.T.astype(float)
        assert top.min() == left.min() == 0
        assert max((top + height).max(), (left + width).max()) == IMAGE_SIDE
        area = height * width / IMAGE_SIDE**2
        assert abs(area.min() - least) < 0.01
        assert abs(area.max() - most) < 0.012


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
        ("resized_crop", 2.0), ("colour", -1.0), ("greyscale", 1.1), ("blur", math.nan), ("jpeg", 7.0),
        ("cutout", -0.5), ("resized_crop_area", (0.0, 1.0)), ("resized_crop_ratio", (0.0, 2.0)),
        ("cutout_area", (0.5, 0.2)), ("cutout_ratio", (2.0, 3.0)), ("brightness", (-0.1, 1.0)),
        ("contrast", (1.0, math.nan)), ("saturation", (1.0, 100.0)), ("hue", (-200.0, 0.0)), ("hue", (10.0, -10.0)),
        ("blur_sigma", (0.0, 1.0)), ("blur_sigma", (1.0, 100.0)), ("jpeg_quality", (0, 50)),
        ("jpeg_quality", (50, 101)),
    ],
)
def test_augmentation_that_cannot_be_names_its_setting(setting, value):
    with pytest.raises(SettingsError, match=f"augmentation.{setting} = "):
        Augmentation(**{setting: value})
