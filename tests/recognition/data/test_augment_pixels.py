"""Each augmentation alone and all together: what it does to pixels, and DALI's pixels against the reference's."""

import importlib.util
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch

from recognition.data import dali_augment
from recognition.data.augment import augment, blur
from recognition.data.augmentation import IMAGE_SIDE, Augmentation, Draws, draw_augmentation
from recognition.data.dataset import open_dataset
from recognition.data.fallback import decode
from recognition.data.loader import make_loader
from recognition.data.plan import Plan

HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="NVIDIA DALI is not installed")
CPU = torch.device("cpu")
NOTHING = Augmentation(flip=0.0)
ALONE = {
    "flip": Augmentation(flip=0.5),
    "resized_crop": replace(NOTHING, resized_crop=0.8, resized_crop_area=(0.05, 1.0)),
    "colour": replace(NOTHING, colour=0.8, hue=(-180, 180), brightness=(0.0, 2.0), contrast=(0.0, 3.0)),
    "greyscale": replace(NOTHING, greyscale=0.8),
    "blur": replace(NOTHING, blur=0.8, blur_sigma=(0.1, 16)),
    "crop": replace(NOTHING, crop=0.8),
    "downsample": replace(NOTHING, downsample=0.8),
    "jpeg": replace(NOTHING, jpeg=0.8, jpeg_quality=(1, 100)),
    "cutout": replace(NOTHING, cutout=0.8, cutout_area=(0.001, 1.0)),
}
# Levels between DALI and the reference: where float32 sums end between two levels, rounding may differ by one; resizing
# up again with overshoot may double it.
LEVELS = {"flip": 0, "crop": 0, "cutout": 0, "jpeg": 0, "downsample": 2}
EVERYTHING = Augmentation(**dict.fromkeys(ALONE, 0.5))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def noisy(small_set):
    return open_dataset(small_set)


def loaded(kind: str, dataset, augmentation: Augmentation, steps: int, rows: int = 48) -> np.ndarray:
    plan = Plan(dataset.num_images, rows, 0, 1, 3, augmentation)
    batches = make_loader(kind, dataset, plan, CPU, threads=2).batches(0, steps)
    return np.stack([batch.image.numpy() for batch in batches]).astype(int)


def without(row: int = 1) -> Draws:
    return draw_augmentation(NOTHING, 0, 0, np.arange(row))


def test_every_probability_is_tried_alone():
    assert set(ALONE) == {name for name, value in vars(Augmentation()).items() if not isinstance(value, tuple)}


@needs_dali
@pytest.mark.parametrize("name", ALONE)
def test_dali_and_the_reference_give_the_same_pixels(name, noisy):
    dali, fallback = (loaded(kind, noisy, ALONE[name], 4) for kind in ("dali", "fallback"))
    plain = loaded("fallback", noisy, NOTHING, 4)
    assert (plain != fallback).any(axis=(2, 3, 4)).mean() > 0.3  # it happens
    assert (plain == fallback).all(axis=(2, 3, 4)).any()  # and not to all
    difference = np.abs(dali - fallback)
    assert difference.max() <= LEVELS.get(name, 1)
    assert (difference > 0).mean() < 0.01


@needs_dali
def test_all_together_give_the_same_pixels(noisy):
    dali, fallback = (loaded(kind, noisy, EVERYTHING, 6) for kind in ("dali", "fallback"))
    plan = Plan(noisy.num_images, 48, 0, 1, 3, EVERYTHING)
    draws = [plan.batch(step).draws for step in range(6)]
    compressed = np.stack([draw.is_compressed for draw in draws])
    difference = np.abs(dali - fallback)
    assert difference[~compressed].max() <= 3  # contrast or overshoot may triple a level
    # a level before JPEG may move a coefficient over a rounding edge, and with it an 8×8 block
    assert (difference > 3).mean() < 2e-3
    assert difference.mean() < 0.02


@needs_dali
def test_only_what_is_asked_for_is_in_the_graph(noisy):
    sizes = {name: dali_augment.num_inputs(one) for name, one in ALONE.items()}
    assert sizes == {"flip": 1, "resized_crop": 4, "colour": 3, "greyscale": 3, "blur": 4, "crop": 4, "downsample": 6,
                     "jpeg": 3, "cutout": 4}  # fmt: skip
    loader = make_loader("dali", noisy, Plan(96, 8, 0, 1, 0, Augmentation(crop=0.1)), CPU, 1)
    operators = _operators(loader)
    assert "Erase" in operators
    assert not operators & {"JpegCompressionDistortion", "GaussianBlur", "CoordTransform", "Slice", "Resize"}
    everything = _operators(make_loader("dali", noisy, Plan(96, 8, 0, 1, 0, EVERYTHING), CPU, 1))
    assert everything >= {"JpegCompressionDistortion", "GaussianBlur", "CoordTransform", "Slice", "Resize", "Erase"}


def _operators(loader) -> set[str]:
    """The kinds of operators in a loader's pipeline, from the graph that DALI serialises."""
    graph = loader._pipeline(lambda: ()).serialize()
    names = ("JpegCompressionDistortion", "GaussianBlur", "CoordTransform", "Slice", "Resize", "Erase", "Flip")
    return {name for name in names if name.encode() in graph}


@pytest.mark.parametrize("kind", [pytest.param("dali", marks=needs_dali), "fallback"])
def test_pixels_do_not_depend_on_batches_ranks_or_order(kind, noisy):
    def by_sample(rows: int, ranks: int) -> dict[int, np.ndarray]:
        images = {}
        for rank in range(ranks):
            plan = Plan(noisy.num_images, rows, rank, ranks, 3, EVERYTHING)
            for batch in make_loader(kind, noisy, plan, CPU, threads=2).batches(0, plan.steps_per_epoch):
                images |= dict(zip(batch.sample.tolist(), batch.image.numpy(), strict=True))
        return images

    whole = by_sample(96, 1)
    assert len(whole) == 96
    for rows, ranks in ((12, 1), (48, 3), (6, 2)):
        parts = by_sample(rows, ranks)
        assert parts.keys() == whole.keys()
        assert all(np.array_equal(parts[sample], whole[sample]) for sample in whole)


# What each does


def test_nothing_drawn_changes_nothing(noisy):
    image = decode(noisy, 5)
    assert np.array_equal(augment(image, without(), 0), image)


def test_a_row_that_takes_anothers_draws_is_augmented_like_that_one(noisy):
    image, draws = decode(noisy, 5), draw_augmentation(EVERYTHING, 0, 0, np.arange(8))
    for row in range(8):
        augment(image, draws, row)
        other = draw_augmentation(EVERYTHING, 0, 0, np.array([row + 50]))
        for field in fields(Draws):
            getattr(draws, field.name)[row] = getattr(other, field.name)[0]
        assert np.array_equal(augment(image, draws, row), augment(image, other, 0))


def test_a_resized_crop_shows_the_rectangle(noisy):
    image = decode(noisy, 5)
    draws = replace(without(), resized=np.array([[10, 20, 56, 56]], np.int32))
    result = augment(image, draws, 0)
    expected = cv2.resize(image[10:66, 20:76], (IMAGE_SIDE, IMAGE_SIDE), interpolation=cv2.INTER_LINEAR)
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_cut_out_blanks_its_rectangle_and_nothing_else(noisy):
    image = decode(noisy, 5)
    draws = replace(without(), cutout=np.array([[10, 20, 30, 40]], np.int32), quality=np.array([10], np.int32))
    result = augment(image, draws, 0)
    assert (result[10:40, 20:60] == 0).all()  # after JPEG, which would blur its edge
    assert (result[:10] > 0).any()
    assert np.array_equal(decode(noisy, 5), image)


def test_a_blur_is_opencvs_and_keeps_the_mean():
    image = np.random.default_rng(0).integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    for sigma in (0.5, 1.0, 2.5):
        side = 2 * int(np.ceil(3 * sigma)) + 1
        expected = cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
        assert np.abs(blur(image, sigma).astype(int) - expected).max() <= 1
    assert abs(blur(image, 2).mean() - image.mean()) < 1
    assert blur(image, 2).std() < 0.3 * image.std()


def test_lower_quality_is_further_from_the_image(noisy):
    image = decode(noisy, 5)
    errors = []
    for quality in (5, 20, 50, 95):
        result = augment(image, replace(without(), quality=np.array([quality], np.int32)), 0)
        errors.append(np.abs(result.astype(int) - image).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[-1] > 0
