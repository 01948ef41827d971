"""eval/metrics/bands.py: weights against repeated pairs, thinning against all pairs, coverage of known truths."""

from statistics import NormalDist

import numpy as np
import pytest

from eval import metrics
from eval.metrics import bands


def pairs(seed, identities=40, same_each=4, decimals=6):
    """All pairs of identities and some within each; scores have effects of the identities."""
    generator = np.random.default_rng(seed)
    first, second = np.triu_indices(identities, 1)
    effect = generator.normal(0, 0.6, identities)
    different = effect[first] + effect[second] + generator.normal(size=len(first))
    own = np.repeat(np.arange(identities), same_each)
    alike = 2 + effect[own] + generator.normal(size=len(own))
    score = np.round(np.r_[different, alike], decimals)
    same = np.arange(len(score)) >= len(first)
    return score, same, (np.r_[first, own], np.r_[second, own])


def strict(score, same, far):
    curve = metrics.roc(score, same, drop_collinear=False)
    return [metrics.tar_strict(curve, x) for x in far]


@pytest.mark.parametrize("decimals", [6, 1, 0])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_curve_is_the_strict_reading(decimals, grouped):
    score, same, groups = pairs(0, decimals=decimals)
    found = metrics.roc_summary(score, same, groups if grouped else None, points=50, resamples=3)
    assert found["far"][0] == 1 / 780
    assert found["far"][-1] == 1
    assert np.all(np.diff(np.log(found["far"])) == pytest.approx(np.log(780) / 49))
    assert found["tar"] == strict(score, same, found["far"])
    assert {key: len(values) for key, values in found.items()} == dict.fromkeys(("far", "tar", "low", "high"), 50)


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_weights_of_one_give_the_curve_itself(decimals):
    score, same, groups = pairs(1, decimals=decimals)
    far = np.geomspace(1 / 780, 1, 60)
    steps = bands._steps(score, same, groups)
    assert steps.tar(far, np.ones(40, int), np.random.default_rng(0)).tolist() == strict(score, same, far)


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_a_pair_counts_as_often_as_its_identities_are_drawn(decimals):
    score, same, (first, second) = pairs(2, decimals=decimals)
    far = np.geomspace(1e-4, 1, 60)
    generator = np.random.default_rng(5)
    for _ in range(5):
        drawn = np.bincount(generator.integers(0, 40, 40), minlength=40)
        times = np.array([drawn[i] if i == j else drawn[i] * drawn[j] for i, j in zip(first, second, strict=True)])
        rows = np.repeat(np.arange(len(score)), times)
        found = bands._steps(score, same, (first, second)).tar(far, drawn, generator)
        assert found.tolist() == strict(score[rows], same[rows], far)


def test_names_of_identities_do_not_matter():
    score, same, (first, second) = pairs(3)
    names = np.array([f"person {(7 * i) % 40:02}" for i in range(40)])
    named = metrics.roc_summary(score, same, (names[first], names[second]))
    order = np.argsort(np.argsort(names))  # where np.unique puts them
    assert metrics.roc_summary(score, same, (order[first], order[second])) == named


@pytest.mark.parametrize("grouped", [True, False])
def test_thinned_pairs_give_nearly_the_same_band(monkeypatch, grouped):
    score, same, groups = pairs(4, identities=300, same_each=20)
    groups = groups if grouped else None
    whole = metrics.roc_summary(score, same, groups, points=30)
    monkeypatch.setattr(bands, "KEPT", 2000)
    thin = metrics.roc_summary(score, same, groups, points=30)
    assert thin["tar"] == whole["tar"]
    for end in ("low", "high"):
        np.testing.assert_allclose(thin[end], whole[end], atol=0.02)
    rows, stands_for = bands._thinned(score, np.flatnonzero(~same), decades=True)
    assert len(rows) < 2 * 2000 + 4485  # of 44,850: two decades are thinned
    assert stands_for.sum() == pytest.approx(np.count_nonzero(~same))
    assert stands_for[np.argmax(score[rows])] == 1  # the hardest all take part


def covered(grouped, trials=90, far=0.1):
    """How often the band holds the TAR that is known from how the scores are made."""
    threshold = NormalDist(0, (2 * 0.36 + 1) ** 0.5).inv_cdf(1 - far)
    truth = 1 - NormalDist(2, 1.36**0.5).cdf(threshold)
    inside = 0
    for seed in range(trials):
        score, same, groups = pairs(1000 + seed, same_each=12)
        intervals = metrics.tar_intervals(score, same, groups if grouped else None, (far,), resamples=100)
        low, high = intervals[str(far)]
        inside += low <= truth <= high
    return inside / trials


def test_bands_over_identities_cover_the_truth_and_those_over_pairs_do_not():
    assert 0.88 <= covered(grouped=True) <= 0.99
    assert covered(grouped=False) < 0.8


def test_independent_pairs_are_covered_by_the_band_over_pairs():
    truth = 1 - NormalDist(2).cdf(NormalDist().inv_cdf(0.95))
    inside = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        same = np.arange(700) < 200
        score = generator.normal(2.0 * same)
        low, high = metrics.tar_intervals(score, same, None, (0.05,), resamples=100)["0.05"]
        inside += low <= truth <= high
    assert 0.9 <= inside / 100 <= 0.995


def test_one_identity_tells_nothing():
    found = metrics.roc_summary(
        np.array([1.0, 0.0]), np.array([True, False]), (np.array([0, 0]), np.array([0, 1])), points=3, resamples=20
    )
    assert found["tar"] == [1, 1, 1]
    score, same = np.array([1.0, 0.0]), np.array([True, False])
    drawn_never_together = (np.array(["a", "b"]), np.array(["a", "c"]))
    few = metrics.roc_summary(score, same, drawn_never_together, points=3, resamples=0)
    assert (few["low"], few["high"]) == ([0, 0, 0], [1, 1, 1])


def test_intervals_have_the_keys_of_the_json_and_shrink_with_more_pairs():
    few, many = (metrics.tar_intervals(*pairs(5, identities=n)) for n in (20, 120))
    assert list(few) == ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1"]
    width = [interval["0.1"][1] - interval["0.1"][0] for interval in (few, many)]
    assert width[1] < 0.7 * width[0]


def accuracy_of_repeated(distance, issame, times, folds):
    """Ten-fold accuracy where pair i stands `times[i]` times in its fold."""
    parts = np.array_split(np.arange(len(distance)), folds)
    result = []
    for test in parts:
        best, best_threshold = -1, 0.0
        for threshold in np.arange(0, 4, 0.01):
            right = times * ((distance < threshold) == issame)
            correct = right.sum() - right[test].sum()
            if correct > best:
                best, best_threshold = correct, threshold
        if times[test].sum():
            right = times[test] * ((distance[test] < best_threshold) == issame[test])
            result.append(right.sum() / times[test].sum())
    return np.mean(result)


@pytest.mark.parametrize("decimals", [6, 1])
def test_weighted_accuracy(decimals):
    generator = np.random.default_rng(6)
    issame = generator.random(83) < 0.5
    distance = np.round(np.clip(generator.normal(np.where(issame, 1.2, 1.9), 0.4), 0, 4), decimals)
    cell = bands._cells(distance, issame, 10)
    assert bands._weighted_accuracy(cell, np.ones(83), 10) == pytest.approx(
        metrics.fold_accuracy(distance, issame).mean(), abs=1e-12
    )
    for _ in range(4):
        times = generator.poisson(0.7, 83)
        times[:9] = 0  # nothing is drawn of the first fold
        expected = accuracy_of_repeated(distance, issame, times, 10)
        assert bands._weighted_accuracy(cell, times, 10) == pytest.approx(expected, abs=1e-12)


def test_accuracy_interval():
    generator = np.random.default_rng(7)
    issame = generator.random(600) < 0.5
    distance = np.clip(generator.normal(np.where(issame, 1.2, 1.9), 0.35), 0, 4)
    low, high = metrics.accuracy_interval(distance, issame)
    mean = metrics.fold_accuracy(distance, issame).mean()
    assert low < mean < high
    expected = 2 * 1.96 * (mean * (1 - mean) / 600) ** 0.5  # of a share among independent pairs
    assert high - low == pytest.approx(expected, rel=0.25)
    twenty = np.arange(600) // 30  # pairs of one identity each
    low, high = metrics.accuracy_interval(distance, issame, (twenty, twenty))
    assert low < mean < high
    assert metrics.accuracy_interval(distance, issame) == metrics.accuracy_interval(distance, issame, seed=0)
    assert metrics.accuracy_interval(distance, issame) != metrics.accuracy_interval(distance, issame, seed=1)


def test_impossible_input_is_named():
    score, same = np.arange(4.0), np.array([True, False, True, False])
    with pytest.raises(ValueError, match="both kinds"):
        metrics.roc_summary(score, np.ones(4, bool))
    with pytest.raises(ValueError, match="two identities for each of 4 pairs"):
        metrics.roc_summary(score, same, (np.arange(3), np.arange(4)))
    with pytest.raises(ValueError, match="10 folds need at least 10 pairs, got 4"):
        metrics.accuracy_interval(score, same)
