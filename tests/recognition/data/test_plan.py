import math
import tracemalloc
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recognition.data.augmentation import Augmentation, Draws
from recognition.data.plan import Plan, epoch_order
from recognition.errors import SettingsError

GOLDEN = {
    "sample": [370, 636, 184, 284],
    "flip": [False, True, False, False],
    "crop": [[1, 0, 109, 112], [7, 5, 105, 106], [36, 11, 45, 57], [1, 0, 111, 112]],
    "side": [91, 84, 27, 111],
    "down": [2, 0, 2, 2],
    "up": [0, 2, 2, 0],
}
PAPER = Augmentation(crop=0.2, downsample=0.2)
ALWAYS = Augmentation(crop=1.0, downsample=1.0)


def plans(num_images: int, batch_size: int, world_size: int, seed: int = 3) -> list[Plan]:
    return [Plan(num_images, batch_size, rank, world_size, seed, PAPER) for rank in range(world_size)]


def global_batch(ranks: list[Plan], step: int) -> dict[str, np.ndarray]:
    parts = [plan.batch(step) for plan in ranks]
    drawn = {field.name: np.concatenate([getattr(part.draws, field.name) for part in parts]) for field in fields(Draws)}
    return {"sample": np.concatenate([part.sample for part in parts]), **drawn}


def assert_chi_square_fits(counts: np.ndarray, expected: float) -> None:
    """Counts of equally likely cells: chi² within five standard deviations of its mean."""
    degrees = counts.size - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - degrees) < 5 * math.sqrt(2 * degrees)


# The order


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 5, 6, 7, 16, 17, 99, 100, 101, 4096, 10007])
def test_an_epoch_is_a_permutation(num_images):
    for epoch in range(3):
        assert sorted(epoch_order(num_images, 7, epoch).tolist()) == list(range(num_images))


def test_a_part_of_an_order_is_the_same_as_in_the_whole():
    whole = epoch_order(1003, 5, 2)
    parts = [epoch_order(1003, 5, 2, start, min(start + 100, 1003)) for start in range(0, 1003, 100)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(("num_images", "each"), [(2, 500), (3, 200), (4, 100), (5, 30)])
def test_all_orders_of_a_few_samples_are_equally_likely(num_images, each):
    draws = each * math.factorial(num_images)
    counts = Counter(tuple(epoch_order(num_images, seed, 0).tolist()) for seed in range(draws))
    assert len(counts) == math.factorial(num_images)
    assert_chi_square_fits(np.array(list(counts.values())), each)


@pytest.mark.parametrize(("first", "second"), [((1, 0), (1, 1)), ((1, 0), (2, 0)), ((0, 1), (1, 0))])
def test_orders_of_other_epochs_and_seeds_are_independent(first, second):
    n, bins = 40_000, 20
    one, other = epoch_order(n, *first), epoch_order(n, *second)
    pairs = np.stack([one, other, np.arange(n)])
    cells = pairs * bins // n
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert_chi_square_fits(np.bincount(cells[a] * bins + cells[b], minlength=bins * bins), n / bins**2)
    following = cells[0][:-1] * bins + cells[0][1:]
    assert_chi_square_fits(np.bincount(following, minlength=bins * bins), (n - 1) / bins**2)
    assert (one == other).sum() < 10  # a fixed point is expected once
    assert (np.abs(np.diff(one)) == 1).sum() < 15  # neighbours that stay neighbours: expected twice


def test_the_order_of_42_million_samples_takes_no_memory():
    tracemalloc.start()
    try:
        plan = Plan(42_000_000, 1024, 3, 8, 0, PAPER)
        batch = plan.batch(plan.steps_per_epoch * 5 + 40_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batch.epoch == 5
    assert batch.sample.max() > 2**24
    assert peak < 1_000_000


def test_the_plan_is_what_it_was_when_earlier_runs_were_started():
    # A change of these numbers makes runs that are resumed see other data. They are this module's own output.
    batch = Plan(1000, 8, 1, 2, 12345, ALWAYS).batch(130)
    assert batch.sample.tolist() == GOLDEN["sample"]
    assert batch.draws.flip.tolist() == GOLDEN["flip"]
    assert batch.draws.crop.tolist() == GOLDEN["crop"]
    assert batch.draws.side.tolist() == GOLDEN["side"]
    assert batch.draws.down.tolist() == GOLDEN["down"]
    assert batch.draws.up.tolist() == GOLDEN["up"]


# Ranks and epochs


@pytest.mark.parametrize(("num_images", "batch_size"), [(103, 12), (96, 24), (25, 24), (24, 24)])
def test_every_sample_at_most_once_an_epoch_whatever_the_ranks(num_images, batch_size):
    for epoch in range(3):
        seen = {}
        for world_size in (1, 2, 3, 4):
            ranks = plans(num_images, batch_size, world_size)
            steps = {plan.steps_per_epoch for plan in ranks}
            assert steps == {num_images // batch_size}
            (count,) = steps
            batches = [global_batch(ranks, epoch * count + step) for step in range(count)]
            seen[world_size] = np.concatenate([batch["sample"] for batch in batches])
        samples = seen[1]
        assert len(set(samples.tolist())) == len(samples) == num_images // batch_size * batch_size
        assert all(np.array_equal(samples, other) for other in seen.values())


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_augmentation_of_a_global_batch_does_not_depend_on_the_ranks(world_size):
    alone, ranks = plans(500, 64, 1), plans(500, 64, world_size)
    for step in (0, 6, 7, 50):
        one, many = global_batch(alone, step), global_batch(ranks, step)
        assert all(np.array_equal(one[name], many[name]) for name in one)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9), images=st.lists(st.integers(1, 60), min_size=1, max_size=4), seed=st.integers(0, 2**62 - 1),
    weights=st.lists(st.sampled_from([1.0, 0.5, 2.0, 1.7, 0.3, 1 / 3]), min_size=4, max_size=4),
)
def test_the_coverage_of_several_sets(rows, images, weights, seed):
    """3 epochs on 1, 2, 3 and 4 ranks: same steps, same global batches, each sample at most ⌈weight⌉ times an epoch,
    and all of an epoch's list but for less than one global batch."""
    batch_size = 12 * rows  # which 1, 2, 3 and 4 ranks divide
    parts = [(count, weight if round(count * weight) else 1.0) for count, weight in zip(images, weights, strict=False)]
    size = sum(round(count * weight) for count, weight in parts)
    if size < batch_size:
        parts.append((batch_size, 1.0))
        size += batch_size
    most = np.repeat([math.ceil(weight) for _, weight in parts], [count for count, _ in parts])
    for epoch in range(3):
        seen = {}
        for world_size in (1, 2, 3, 4):
            ranks = [Plan(len(most), batch_size, rank, world_size, seed, PAPER, parts) for rank in range(world_size)]
            (count,) = {plan.steps_per_epoch for plan in ranks}
            assert count == size // batch_size
            batches = [global_batch(ranks, epoch * count + step) for step in range(count)]
            seen[world_size] = {name: np.concatenate([b[name] for b in batches]) for name in ("sample", "crop")}
        uses = np.bincount(seen[1]["sample"], minlength=len(most))
        assert (uses <= most).all()
        assert size - uses.sum() < batch_size
        assert all(np.array_equal(seen[1][name], other[name]) for other in seen.values() for name in other)


@pytest.mark.parametrize("weight", [0.25, 0.3, 1.5, 2.0, 3.4])
def test_a_weight_is_how_often_an_epoch_uses_each_sample(weight):
    plan = Plan(1000 + 40, 10, 0, 1, 3, PAPER, [(1000, 1.0), (40, weight)])
    assert plan.epoch_size == 1000 + round(40 * weight)
    uses = np.zeros(1040)
    for epoch in range(20):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        uses += np.bincount(np.concatenate([plan.batch(step).sample for step in steps]), minlength=1040)
    # at most one batch is left out of each epoch, of all sets alike
    assert abs(uses[1000:].sum() / (20 * 40 * round(40 * weight) / 40) - 1) < 0.05
    everything = epoch_order(plan.epoch_size, 3, 0)
    listed = np.bincount(np.concatenate([plan._at(0, epoch, everything).sample for epoch in range(20)]), minlength=1040)
    assert np.ptp(listed[1000:]) <= 1  # over epochs all samples of a set come equally often
    assert (listed[:1000] == 20).all()


def test_a_sample_that_comes_twice_in_an_epoch_is_augmented_twice():
    plan = Plan(50, 100, 0, 1, 0, replace(ALWAYS, flip=0.5), [(50, 2.0)])
    batch = plan.batch(0)
    order = np.argsort(batch.sample, kind="stable")
    crop = batch.draws.crop[order].reshape(50, 2, 4)
    assert (batch.sample[order].reshape(50, 2) == np.arange(50)[:, None]).all()
    assert (crop[:, 0] != crop[:, 1]).any(axis=1).mean() > 0.9


def test_sets_of_weight_one_are_one_set():
    alone, joined = Plan(100, 10, 0, 1, 4, PAPER), Plan(100, 10, 0, 1, 4, PAPER, [(60, 1.0), (40, 1.0)])
    for step in range(20):
        assert np.array_equal(alone.batch(step).sample, joined.batch(step).sample)
        assert np.array_equal(alone.batch(step).draws.crop, joined.batch(step).draws.crop)


def test_substitutes_are_what_the_row_holds_in_later_steps():
    plan = Plan(103, 12, 1, 2, 3, PAPER)
    order = epoch_order(103, 3, 1)
    for step, row, attempt in ((8, 0, 1), (9, 5, 2), (15, 3, 1), (15, 3, 2), (8, 1, 20)):
        other = plan.substitute(step, row, attempt)
        assert other.sample.tolist() == [order[((step - 8) * 12 + 6 + row + attempt * 12) % 103]]
    assert plan.substitute(8, 2, 3).sample[0] == plan.batch(11).sample[2]
    assert np.array_equal(plan.substitute(8, 2, 3).draws.crop[0], plan.batch(11).draws.crop[2])


def test_other_samples_are_left_out_in_other_epochs():
    plan = Plan(11, 10, 0, 1, 0, Augmentation())
    left_out = {(set(range(11)) - set(plan.batch(epoch).sample.tolist())).pop() for epoch in range(100)}
    assert left_out == set(range(11))


def test_a_step_is_a_pure_function_of_its_number():
    plan, other = Plan(300, 32, 0, 1, 9, PAPER), Plan(300, 32, 0, 1, 9, PAPER)
    late = plan.batch(100)
    for step in range(100):
        other.batch(step)
    again = other.batch(100)
    assert (late.step, late.epoch) == (again.step, again.epoch) == (100, 100 // 9)
    assert np.array_equal(late.sample, again.sample)
    assert np.array_equal(late.draws.crop, again.draws.crop)


# What cannot be


def test_a_batch_that_the_ranks_do_not_divide_shows_both_numbers():
    with pytest.raises(SettingsError, match=r"batch size 10 .* 4 ranks"):
        Plan(100, 10, 0, 4, 0, Augmentation())


def test_a_batch_larger_than_the_set_shows_both_numbers():
    with pytest.raises(SettingsError, match=r"batch size 128 .* 100 images"):
        Plan(100, 128, 0, 4, 0, Augmentation())


def test_parts_that_cannot_be():
    with pytest.raises(SettingsError, match=r"weight 0.1 of a set of 4 images: not one image an epoch"):
        Plan(104, 8, 0, 1, 0, Augmentation(), [(100, 1.0), (4, 0.1)])
    with pytest.raises(SettingsError, match=r"batch size 64 .* 50 images that an epoch uses of 100"):
        Plan(100, 64, 0, 1, 0, Augmentation(), [(100, 0.5)])
