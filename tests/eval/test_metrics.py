"""eval/metrics.py against references that count pair by pair, written from the protocols' words."""

import numpy as np
import pytest

from eval import metrics


def random_pairs(seed, count, tied=False):
    generator = np.random.default_rng(seed)
    issame = generator.random(count) < 0.5
    distance = np.clip(generator.normal(np.where(issame, 1.2, 1.9), 0.35), 0, 4)
    return (np.round(distance, 1) if tied else distance), issame


def folds_of(count, folds):
    """First count mod folds get one more."""
    start, result = 0, []
    for fold in range(folds):
        stop = start + count // folds + (1 if fold < count % folds else 0)
        result.append(range(start, stop))
        start = stop
    return result


def accuracy_by_hand(distance, issame, folds=10):
    result = []
    for test in folds_of(len(distance), folds):
        best, best_threshold = -1, None
        for threshold in np.arange(0, 4, 0.01):
            correct = sum((distance[i] < threshold) == issame[i] for i in range(len(distance)) if i not in test)
            if correct > best:
                best, best_threshold = correct, threshold
        result.append(sum((distance[i] < best_threshold) == issame[i] for i in test) / len(test))
    return result


def val_by_hand(distance, issame, target, folds=10):
    grid = np.arange(0, 4, 0.001)
    values, rates, left_out = [], [], []
    for fold, test in enumerate(folds_of(len(distance), folds)):
        negatives = sorted(distance[i] for i in range(len(distance)) if i not in test and not issame[i])
        same = [distance[i] for i in test if issame[i]]
        different = [distance[i] for i in test if not issame[i]]
        if not negatives or not same or not different:
            left_out.append(fold)
            continue
        threshold, before = 0.0, (0.0, 0.0)
        for t in grid:
            far = sum(d < t for d in negatives) / len(negatives)
            if far > target:  # where the FAR equals the target on a stretch, its upper end
                share = (target - before[1]) / (far - before[1])
                threshold = before[0] + share * (t - before[0])
                break
            before = (t, far)
        values.append(sum(d < threshold for d in same) / len(same))
        rates.append(sum(d < threshold for d in different) / len(different))
    return np.mean(values), np.mean(rates), left_out


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("count", [10, 57, 60])
def test_fold_accuracy(count, tied):
    distance, issame = random_pairs(count, count, tied)
    np.testing.assert_allclose(metrics.fold_accuracy(distance, issame), accuracy_by_hand(distance, issame), atol=1e-12)


def test_first_of_the_best_thresholds_is_taken():
    # Same pairs at 0.5, different at 1.5: every threshold from 0.51 to 1.50 is perfect on the other folds; the first
    # must be taken, which the last fold's same pairs at 1.0 tell from all thresholds above 1.
    distance = np.array([0.5, 1.5] * 9 + [1.0, 1.5])
    issame = np.array([True, False] * 10)
    accuracy = metrics.fold_accuracy(distance, issame)
    assert accuracy[9] == 0.5
    assert accuracy[:9].tolist() == [1.0] * 9


def test_a_distance_at_the_threshold_is_not_below_it():
    thresholds = np.array([0.0, 1.0, 2.0])
    counts = metrics.count_folds(np.array([1.0, 1.0, 0.0, 2.0]), np.array([True, False, True, False]), thresholds, 2)
    assert counts.same_below.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert counts.different_below.tolist() == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("target", [0.003, 0.05, 0.2])
@pytest.mark.parametrize("tied", [False, True])
def test_fold_val(target, tied):
    distance, issame = random_pairs(5, 83, tied)
    val, far, left_out = metrics.fold_val(distance, issame, target)
    expected_val, expected_far, expected_left_out = val_by_hand(distance, issame, target)
    assert (val, far) == pytest.approx((expected_val, expected_far), abs=1e-12)
    assert left_out == expected_left_out


def test_val_is_zero_where_far_never_gets_there():
    # All different pairs at distance 4: no threshold of the grid accepts one.
    issame = np.array([True, False] * 10)
    val, far, left_out = metrics.fold_val(np.where(issame, 0.1, 4.0), issame, 1e-3)
    assert (val, far, left_out) == (0.0, 0.0, [])


def test_val_leaves_out_folds_of_one_kind():
    distance, issame = random_pairs(2, 100)
    issame[10:20] = True
    issame[40:50] = False
    val, far, left_out = metrics.fold_val(distance, issame, 0.1)
    assert left_out == [1, 4]
    assert (val, far) == pytest.approx(val_by_hand(distance, issame, 0.1)[:2], abs=1e-12)
    assert metrics.fold_val(distance, np.ones(100, bool), 0.1) == (None, None, list(range(10)))
    only_one_fold = np.arange(100) >= 5  # all different pairs in fold 0: its other folds have no FAR
    assert metrics.fold_val(distance, only_one_fold, 0.1) == (None, None, list(range(10)))


def roc_by_hand(score, issame):
    """One point per distinct score, from the highest; then points inside straight runs away."""
    points = [(0, 0)]
    for threshold in sorted(set(score.tolist()), reverse=True):
        accepted = score >= threshold
        points.append((int((accepted & ~issame).sum()), int((accepted & issame).sum())))
    kept = [points[0], points[1]]  # scikit-learn looks for bends among the distinct scores only
    for before, here, after in zip(points[1:-2], points[2:-1], points[3:], strict=True):
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1]):
            kept.append(here)
    if len(points) > 2:
        kept.append(points[-1])
    positives = issame.sum()
    return points, [(x / (len(issame) - positives), y / positives) for x, y in kept]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_roc(seed, decimals):
    generator = np.random.default_rng(seed)
    issame = np.r_[True, False, generator.random(60) < 0.4]
    score = np.round(generator.normal(issame, 1), decimals)
    points, kept = roc_by_hand(score, issame)
    curve = metrics.roc(score, issame)
    np.testing.assert_allclose(np.c_[curve.fpr, curve.tpr], kept, atol=1e-12)
    full = metrics.roc(score, issame, drop_collinear=False)
    totals = [(~issame).sum(), issame.sum()]
    np.testing.assert_allclose(np.c_[full.fpr, full.tpr] * totals, points, atol=1e-9)
    assert full.thresholds[1:].tolist() == sorted(set(score.tolist()), reverse=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize("drop", [True, False])
def test_roc_is_scikit_learns(seed, decimals, drop):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(seed)
    issame = np.r_[True, False, generator.random(300) < 0.3]
    score = np.round(generator.normal(issame, 1), decimals)
    fpr, tpr, thresholds = sklearn_metrics.roc_curve(issame, score, drop_intermediate=drop)
    curve = metrics.roc(score, issame, drop_collinear=drop)
    np.testing.assert_allclose(curve.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-12)
    np.testing.assert_allclose(curve.thresholds, thresholds, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_both_readings_of_tar_at_far(seed):
    generator = np.random.default_rng(seed)
    issame = np.r_[True, False, generator.random(400) < 0.3]
    score = np.round(generator.normal(issame, 1), 2)
    targets = (1e-4, 0.003, 0.01, 0.05, 0.1, 0.5)
    result = metrics.tar_at_far(score, issame, targets)
    points, kept = roc_by_hand(score, issame)
    positives, negatives = issame.sum(), (~issame).sum()
    for target in targets:
        nearest = min(kept, key=lambda point: (abs(point[0] - target), -point[0], -point[1]))
        strict = max(y / positives for x, y in points if x / negatives <= target)
        assert result["nearest"][str(target)] == pytest.approx(nearest[1], abs=1e-12)
        assert result["strict"][str(target)] == pytest.approx(strict, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_threshold_at_far_is_that_of_the_strict_tar(seed):
    """No lower one keeps the FAR, whether scores are tied or not."""
    generator = np.random.default_rng(seed)
    issame = np.r_[True, False, generator.random(400) < 0.3]
    score = generator.normal(issame, 1)
    score = np.round(score, 1) if seed % 2 else score
    different, targets = score[~issame], (1e-4, 0.003, 0.01, 0.05, 0.1, 0.5)
    strict = metrics.tar_at_far(score, issame, targets)["strict"]
    found = metrics.threshold_at_far(score, issame, targets)
    for target in targets:
        threshold = found[str(target)]
        if target * len(different) < 1:
            assert threshold is None
            continue
        assert (different >= threshold).mean() <= target
        assert (different >= different[different < threshold].max()).mean() > target
        assert threshold not in score
        assert (score[issame] >= threshold).mean() == pytest.approx(strict[str(target)], abs=1e-12)


def test_thresholds_need_as_many_different_pairs_as_their_far_says():
    score = np.arange(3000.0)
    assert metrics.threshold_at_far(score, np.zeros(3000, bool), (1e-3,))["0.001"] == 2996.5
    assert metrics.threshold_at_far(score[:1000], np.zeros(1000, bool), (1e-3,))["0.001"] == 998.5
    assert metrics.threshold_at_far(score[:999], np.zeros(999, bool), (1e-3,))["0.001"] is None
    assert metrics.threshold_at_far(score[:9], np.ones(9, bool), (0.5,))["0.5"] is None
    equal = metrics.threshold_at_far(np.ones(9), np.zeros(9, bool), (0.5,))["0.5"]
    assert equal == np.nextafter(1.0, 2)  # all of them or none


def test_nearest_at_a_tie_takes_the_higher_fpr_and_strict_does_not_pass_the_target():
    curve = metrics.Roc(np.array([0, 0, 2, 4]), np.array([0, 1, 3, 5]), np.array([np.inf, 3, 2, 1]))
    assert metrics.tar_nearest(curve, 0.25) == 0.6
    assert metrics.tar_nearest(curve, 0.24) == 0.2  # of the points at FPR 0 the last
    assert metrics.tar_strict(curve, 0.25) == 0.2
    assert metrics.tar_strict(curve, 0.5) == 0.6


def test_strict_does_not_miss_points_of_straight_runs():
    # Alternating negatives and positives: after dropping, only the ends of the staircase's straight runs are left.
    score = -np.arange(8.0)
    issame = np.array([False, False, False, False, True, True, True, True])
    assert metrics.tar_at_far(score, issame, (0.5,))["strict"]["0.5"] == 0.0
    tied_pairs = np.repeat(-np.arange(4.0), 2)  # one of each kind per score: a straight diagonal
    issame = np.tile([True, False], 4)
    result = metrics.tar_at_far(tied_pairs, issame, (0.5,))
    assert result["strict"]["0.5"] == 0.5
    assert metrics.roc(tied_pairs, issame).fpr.tolist() == [0, 0.25, 1]


def test_keys_are_those_of_the_json():
    result = metrics.tar_at_far(np.array([1.0, 0.0]), np.array([True, False]))
    assert list(result["nearest"]) == ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_det_points_are_scikit_learns(seed, decimals):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(seed)
    issame = np.r_[True, False, generator.random(300) < 0.3]
    score = np.round(generator.normal(issame * (seed - 1), 1), decimals)
    fpr, fnr, _ = sklearn_metrics.det_curve(issame, score, drop_intermediate=True)
    false_match, false_non_match = metrics.det_points(metrics.roc(score, issame, drop_collinear=False))
    np.testing.assert_allclose(false_match, fpr[::-1], atol=1e-12)
    np.testing.assert_allclose(false_non_match, fnr[::-1], atol=1e-12)


@pytest.mark.parametrize("order", [[2, 1], [1, 2], [1, 1]])
def test_det_points_of_two_pairs(order):
    curve = metrics.roc(np.array(order, float), np.array([True, False]), drop_collinear=False)
    points = [column.tolist() for column in metrics.det_points(curve)]
    assert points == {(2, 1): [[0], [0]], (1, 2): [[0, 1, 1], [1, 1, 0]], (1, 1): [[0, 1], [1, 0]]}[tuple(order)]


def test_equal_error_rate():
    issame = np.array([True] * 10 + [False] * 10)
    perfect = np.where(issame, 1.0, 0.0)
    assert metrics.equal_error_rate(metrics.roc(perfect, issame)) == 0
    assert metrics.equal_error_rate(metrics.roc(-perfect, issame)) == 1
    assert metrics.equal_error_rate(metrics.roc(np.zeros(20), issame)) == 0.5
    one_wrong_each = perfect.copy()
    one_wrong_each[[0, 10]] = 0, 1
    assert metrics.equal_error_rate(metrics.roc(one_wrong_each, issame)) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equal_error_rate_is_where_the_curve_crosses_the_diagonal(seed):
    generator = np.random.default_rng(seed)
    issame = generator.random(200) < 0.3
    curve = metrics.roc(np.round(generator.normal(issame, 1), 1), issame, drop_collinear=False)
    rate = metrics.equal_error_rate(curve)
    fine = np.linspace(0, 1, 200_001)
    tpr = np.interp(fine, curve.fpr, curve.tpr)  # on a coarse stair, between its points
    assert rate == pytest.approx(fine[np.argmin(np.abs(fine - (1 - tpr)))], abs=1e-4)


@pytest.mark.parametrize(
    ("score", "issame", "text"),
    [
        ([1.0, 2.0], [True], "shapes"),
        ([1.0, np.nan], [True, False], "1 of 2 scores are not finite"),
        ([1.0, 2.0], [True, True], "2 same of 2"),
        ([1.0, 2.0], [False, False], "0 same of 2"),
    ],
)
def test_impossible_input_is_named(score, issame, text):
    with pytest.raises(ValueError, match=text):
        metrics.roc(np.array(score), np.array(issame))


def test_too_few_pairs_for_the_folds():
    with pytest.raises(ValueError, match="10 folds need at least 10 pairs, got 9"):
        metrics.fold_accuracy(np.zeros(9), np.ones(9, bool))
