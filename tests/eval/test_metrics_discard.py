"""eval/metrics/discard.py against the definition written out pair by pair."""

import numpy as np
import pytest

from eval import metrics


def pairs(seed, count=400, decimals=6, quality_decimals=6):
    generator = np.random.default_rng(seed)
    same = np.r_[True, False, generator.random(count - 2) < 0.4]
    quality = np.round(generator.random((2, count)), quality_decimals)
    score = np.round(generator.normal(2 * same * quality.min(axis=0), 0.5), decimals)
    return score, same, (quality[0], quality[1])


def by_hand(score, same, quality, fmr, discards):
    others = score[~same]
    allowed = [t for t in [*sorted(set(score)), np.inf] if np.mean(others >= t) <= fmr]
    threshold = min(allowed)
    mine = sorted(
        (min(a, b), s < threshold)
        for a, b, s, is_same in zip(quality[0], quality[1], score, same, strict=True)
        if is_same
    )
    result = []
    for discard in discards:
        gone = int(discard * len(mine) + 1e-9)
        result.append(np.mean([wrong for _, wrong in mine[gone:]]))
    return result


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize("fmr", [0, 0.01, 0.1])
def test_error_vs_discard(fmr, decimals):
    score, same, quality = pairs(1, decimals=decimals)
    found = metrics.error_vs_discard(score, same, quality, fmr=fmr, most=0.9, points=31)
    assert found["discard"] == np.linspace(0, 0.9, 31).tolist()
    np.testing.assert_allclose(found["fnmr"], by_hand(score, same, quality, fmr, found["discard"]), atol=1e-12)
    steps = zip(found["fnmr"][:-1], found["fnmr"][1:], strict=True)
    assert found["area"] == pytest.approx(sum((a + b) / 2 * 0.03 for a, b in steps), abs=1e-12)
    assert np.mean(score[~same] > found["threshold"]) <= fmr


def test_fnmr_without_discard_is_one_less_tar():
    score, same, quality = pairs(2)
    found = metrics.error_vs_discard(score, same, quality, fmr=0.01)
    assert 1 - found["fnmr"][0] == pytest.approx(metrics.tar_at_far(score, same, (0.01,))["strict"]["0.01"], abs=1e-12)


def test_pairs_of_one_quality_count_by_their_mean_in_any_order():
    score, same, quality = pairs(3, quality_decimals=1)
    found = metrics.error_vs_discard(score, same, quality, fmr=0.01)
    generator = np.random.default_rng(0)
    by_order = []
    for order in [generator.permutation(len(score)) for _ in range(300)]:
        given = score[order], same[order], (quality[0][order], quality[1][order])
        assert metrics.error_vs_discard(*given, fmr=0.01)["fnmr"] == pytest.approx(found["fnmr"], abs=1e-12)
        worse = np.minimum(*given[2])
        mine = sorted((worse[place], place) for place in np.flatnonzero(given[1]))
        left = [place for _, place in mine[int(0.48 * len(mine)) :]]  # ties in the order they come
        by_order.append(np.mean(given[0][left] <= found["threshold"]))
    assert found["fnmr"][48] == pytest.approx(np.mean(by_order), abs=3 * np.std(by_order) / 300**0.5 + 1e-12)
    assert found["discard"][48] == pytest.approx(0.48)
    flat = metrics.error_vs_discard(score, same, np.ones(len(score)), fmr=0.01)  # a quality that says nothing
    assert flat["fnmr"] == pytest.approx([flat["fnmr"][0]] * 96, abs=1e-12)


def test_a_perfect_quality_throws_the_errors_away_first():
    same = np.array([True] * 10 + [False] * 10)
    score = np.where(same, 1.0, 0.0)
    score[:2] = -1
    found = metrics.error_vs_discard(score, same, np.where(score < 0, 0.0, 1.0), fmr=0, most=0.5, points=6)
    assert found["fnmr"] == pytest.approx([0.2, 1 / 9, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"same": np.ones(4, bool)}, "both kinds"),
        ({"score": np.array([1, np.nan, 0, 0])}, "not finite"),
        ({"quality": np.ones(3)}, "shapes"),
        ({"quality": np.array([1, 1, 1, np.inf])}, "not finite"),
        ({"fmr": 1}, "expected 0 ≤ fmr < 1"),
        ({"most": 1}, "0 ≤ most < 1"),
        ({"points": 1}, "two points"),
    ],
)
def test_impossible_input_is_named(changes, text):
    given = {"score": np.arange(4.0), "same": np.array([True, False, True, False]), "quality": np.ones(4), **changes}
    with pytest.raises(ValueError, match=text):
        metrics.error_vs_discard(**given)
