"""eval/metrics/gallery.py against the definitions, probe by probe, and scikit-learn's average precision."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from eval import metrics


def problem(seed, probes=60, entries=40, subjects=25, decimals=None):
    generator = np.random.default_rng(seed)
    people = generator.normal(size=(subjects, 8))
    gallery_subject = generator.integers(0, subjects, entries)
    probe_subject = generator.integers(0, subjects, probes)
    vectors = [people[s] + generator.normal(size=(len(s), 8)) for s in (probe_subject, gallery_subject)]
    probe, gallery = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors)
    if decimals is not None:  # few distinct values: ties
        probe, gallery = np.round(probe, decimals), np.round(gallery, decimals)
    return probe, gallery, probe_subject, gallery_subject


def ranks_by_hand(probe, gallery, probe_subject, gallery_subject):
    """Rank of the best mate, the mate behind all others of its score; 0 without one."""
    result = []
    for row, subject in zip(probe @ gallery.T, probe_subject, strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], gallery_subject[j] == subject))
        places = [place for place, j in enumerate(order, 1) if gallery_subject[j] == subject]
        result.append(places[0] if places else 0)
    return np.array(result)


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("seed", range(4))
def test_rank_k(seed, decimals):
    given = problem(seed, decimals=decimals)
    found = metrics.search_gallery(*given)
    ranks = ranks_by_hand(*given)
    assert found.rank.tolist() == ranks.tolist()
    for k in (1, 2, 5, 100):
        assert metrics.rank_k(found, k) == sum(0 < r <= k for r in ranks) / sum(r > 0 for r in ranks)


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_scikit_learns(seed, decimals):
    probe, gallery, probe_subject, gallery_subject = problem(seed, decimals=decimals)
    found = metrics.search_gallery(probe, gallery, probe_subject, gallery_subject)
    similarity = probe @ gallery.T
    expected = [
        average_precision_score(gallery_subject == subject, row) if subject in gallery_subject else 0
        for row, subject in zip(similarity, probe_subject, strict=True)
    ]
    np.testing.assert_allclose(found.precision, expected, atol=1e-12)
    mated = np.isin(probe_subject, gallery_subject)
    assert metrics.mean_average_precision(found) == pytest.approx(np.mean(np.array(expected)[mated]), abs=1e-12)


def trapezoids_by_hand(row, mates):
    """Area under precision over recall, entry by entry; mates stand behind all others of their score."""
    order = sorted(range(len(row)), key=lambda j: (-row[j], mates[j]))
    area, recall, precision, found = 0.0, 0.0, 1.0, 0
    for place, j in enumerate(order, 1):
        found += bool(mates[j])
        area += (found / mates.sum() - recall) * (precision + found / place) / 2
        recall, precision = found / mates.sum(), found / place
    return area


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_by_trapezoids(seed, decimals):
    probe, gallery, probe_subject, gallery_subject = problem(seed, decimals=decimals)
    found = metrics.search_gallery(probe, gallery, probe_subject, gallery_subject)
    expected = [
        trapezoids_by_hand(row, gallery_subject == subject)
        for row, subject in zip(probe @ gallery.T, probe_subject, strict=True)
        if subject in gallery_subject
    ]
    assert metrics.mean_average_precision(found, trapezoid=True) == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize("fpir", [0.01, 0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("decimals", [None, 0])
def test_tpir_of_one_gallery(fpir, decimals):
    given = problem(7, probes=200, decimals=decimals)
    similarity, ranks = given[0] @ given[1].T, ranks_by_hand(*given)
    impostors = sorted((row.max() for row, rank in zip(similarity, ranks, strict=True) if rank == 0), reverse=True)
    threshold = impostors[max(int(len(impostors) * fpir) - 1, 0)]
    hits = sum(1 for row, rank in zip(similarity, ranks, strict=True) if rank == 1 and row.max() > threshold)
    found = metrics.search_gallery(*given, largest_fpir=0.1)
    assert metrics.tpir_at_fpir(found, fpir) == pytest.approx(hits / np.count_nonzero(ranks), abs=1e-12)


@pytest.mark.parametrize("fpir", [0.01, 0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("decimals", [None, 0])
def test_tpir_of_merged_galleries(fpir, decimals):
    probe, gallery, probe_subject, _ = problem(8, probes=90, entries=25, decimals=decimals)
    gallery_subject = np.arange(25)
    similarity = probe @ gallery.T
    mate = probe_subject[:, None] == gallery_subject
    threshold = sorted(similarity[~mate], reverse=True)[math.ceil(90 * fpir) - 1]
    found = metrics.search_gallery(probe, gallery, probe_subject, gallery_subject, largest_fpir=1)
    assert metrics.tpir_at_fpir(found, fpir, merged=True) == np.mean(similarity[mate] > threshold)


def test_blocks_change_nothing():
    probe, gallery, probe_subject, gallery_subject = problem(3, probes=3000, entries=40)
    whole = metrics.search_gallery(probe, gallery, probe_subject, gallery_subject)
    blocks = metrics.search_gallery(np.float64(probe), gallery, probe_subject, gallery_subject, megabytes=1)
    assert 3000 * 40 * 35 > 3 << 20  # so there are several
    for name in ("rank", "precision", "trapezoid_precision", "mated"):
        assert getattr(whole, name).tolist() == getattr(blocks, name).tolist(), name
    np.testing.assert_allclose(whole.largest_others, blocks.largest_others, atol=1e-12)


def test_order_of_probes_and_gallery_changes_nothing():
    probe, gallery, probe_subject, gallery_subject = problem(4, decimals=0)
    generator = np.random.default_rng(0)
    p, q = generator.permutation(len(probe)), generator.permutation(len(gallery))
    one = metrics.search_gallery(probe, gallery, probe_subject, gallery_subject)
    other = metrics.search_gallery(probe[p], gallery[q], probe_subject[p], gallery_subject[q])
    assert one.rank[p].tolist() == other.rank.tolist()
    np.testing.assert_allclose(one.precision[p], other.precision, atol=1e-12)
    for merged in (False, True):
        assert metrics.tpir_at_fpir(one, 0.1, merged) == metrics.tpir_at_fpir(other, 0.1, merged)


def test_one_score_for_everything_finds_nobody():
    names = np.array(["ann", "ben", "cem"])
    found = metrics.search_gallery(np.ones((4, 2)), np.ones((3, 2)), np.array(["ann", "ben", "cem", "dan"]), names)
    assert found.rank.tolist() == [3, 3, 3, 0]
    assert (metrics.rank_k(found, 1), metrics.rank_k(found, 2), metrics.rank_k(found, 3)) == (0, 0, 1)
    assert metrics.tpir_at_fpir(found, 0.1) == 0


def test_what_cannot_be_said_is_none():
    probe, gallery = np.eye(3), np.eye(3)
    strangers = metrics.search_gallery(probe, gallery, np.arange(3), np.arange(3) + 3)
    assert metrics.rank_k(strangers, 1) is None
    assert metrics.mean_average_precision(strangers) is None
    assert metrics.tpir_at_fpir(strangers, 0.1) is None
    closed = metrics.search_gallery(probe, gallery, np.arange(3), np.arange(3))
    assert metrics.tpir_at_fpir(closed, 0.1) is None  # no probe without mate
    assert metrics.tpir_at_fpir(closed, 0.1, merged=True) == 1
    nobody = metrics.search_gallery(np.empty((0, 3)), gallery, np.empty(0, int), np.arange(3))
    assert metrics.rank_k(nobody, 1) is None


def test_fewer_scores_of_others_than_the_threshold_needs():
    probe, subjects = np.tile([[1.0, 0.0]], (30, 1)), np.zeros(30, int)
    found = metrics.search_gallery(probe, np.eye(2)[:1], subjects, np.zeros(1, int))
    assert metrics.tpir_at_fpir(found, 0.1, merged=True) is None  # no score of others at all
    subjects[:2] = 1
    found = metrics.search_gallery(probe, np.eye(2)[:1], subjects, np.zeros(1, int))
    assert (found.others, found.largest_others.tolist()) == (2, [1, 1])
    assert metrics.tpir_at_fpir(found, 0.1, merged=True) is None  # the third largest of two
    assert metrics.tpir_at_fpir(found, 0.05, merged=True) == 0


def test_impossible_input_is_named():
    eye, three = np.eye(3), np.arange(3)
    with pytest.raises(ValueError, match="expected probes"):
        metrics.search_gallery(eye, np.eye(2), three, three[:2])
    with pytest.raises(ValueError, match="a subject for each of 3 probes"):
        metrics.search_gallery(eye, eye, three[:2], three)
    with pytest.raises(ValueError, match="probes 0 to 2 are not finite"):
        metrics.search_gallery(eye * np.nan, eye, three, three)
    found = metrics.search_gallery(eye, eye, three, three, largest_fpir=0.1)
    with pytest.raises(ValueError, match="above 0"):
        metrics.tpir_at_fpir(found, 0)
    with pytest.raises(ValueError, match=r"kept 1 scores of non-mates, an FPIR of 0\.5 needs 2"):
        metrics.tpir_at_fpir(found, 0.5, merged=True)
