"""How sure a figure is: bootstrap bands of the ROC curve and intervals of accuracy and of TAR at FAR.

Pairs that share a person are not independent, so whole identities are drawn, with replacement, as many as there are:
a pair of the identities i ≠ j counts as often as i was drawn times j was drawn, a pair within i as often as i was
drawn. Without identities each pair counts a Poisson(1) number of times. Of the resampled figures the quantiles
(1 ± level)/2 are the interval's ends. Each resample finds its thresholds anew.

Two things make millions of pairs quick. TAR at a FAR moves only where a same pair is accepted, so different pairs
are summed in runs between two scores of same pairs; that is exact. And of the different pairs of one decade of the
FAR, or of the same pairs, no more than `KEPT` take part in the resamples, evenly spaced by rank, each counting for
as many as were passed over; that moves a band's end by about √(1/KEPT), 0.2 % of the FAR, where drawing among
thousands of identities moves it by some per cent. The curve itself and sets of fewer pairs are exact. Proven by
tests/eval/test_metrics_bands.py: weights of one give the plain curve, and the bands cover what is known to be true.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from eval.metrics.curve import FAR_TARGETS, checked, of_both_kinds
from eval.metrics.folds import ACCURACY_THRESHOLDS

KEPT = 1 << 18  # pairs of one stratum that take part in resamples

Groups = tuple[np.ndarray, np.ndarray]  # identity of the first and of the second side of each pair


@dataclass(frozen=True)
class _Pairs:
    """Pairs whose weights are drawn."""

    identity: np.ndarray | None  # int64 [2, N], of both sides, from 0; None: pairs are drawn
    stands_for: np.ndarray  # float64 [N], how many pairs each of them is

    def weights(self, drawn: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
        """How often each pair counts, float64 [N], when identity i was drawn drawn[i] times."""
        if self.identity is None or drawn is None:
            return generator.poisson(self.stands_for).astype(np.float64)
        first, second = drawn[self.identity]
        return self.stands_for * np.where(self.identity[0] == self.identity[1], first, first * second)


@dataclass(frozen=True)
class _Steps:
    """A ROC curve as its steps up, one for each distinct score of same pairs, from the highest.

    To take step j the different pairs of runs 0 .. j are accepted; the last run lies behind all steps.
    """

    same: _Pairs
    step: np.ndarray  # int64, of each of the same pairs
    different: _Pairs
    run: np.ndarray  # int64, of each of the different pairs
    steps: int
    identities: int  # 0: pairs are drawn

    def tar(self, far: np.ndarray, drawn: np.ndarray | None, generator: np.random.Generator) -> np.ndarray | None:
        """TAR of one resample at each FAR; None when it has no pairs of one kind."""
        same = np.bincount(self.step, self.same.weights(drawn, generator), self.steps)
        different = np.bincount(self.run, self.different.weights(drawn, generator), self.steps + 1)
        return tar_of_steps(same, different, far) if same.any() and different.any() else None


def tar_of_steps(same: np.ndarray, different: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Largest TAR whose FAR does not exceed each of `far`; weights of steps [J] and runs [J + 1] as in `_Steps`."""
    needed = np.cumsum(different)
    accepted = np.r_[0, np.cumsum(same)]
    return accepted[np.searchsorted(needed[:-1] / needed[-1], far, side="right")] / accepted[-1]


def roc_summary(
    score: np.ndarray,
    same: np.ndarray,
    groups: Groups | None = None,
    *,
    points: int = 200,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, list[float]]:
    """ROC curve on a logarithmic grid with its band, for plots and JSON.

    Args:
        score: float [N], higher is more alike.
        same: bool [N].
        groups: identity of each side, two of [N], to draw identities; None = to draw pairs.
        points: of the curve.
        resamples: of the bootstrap.
        seed: of its draws; the same arguments give the same band.
        level: share of the resampled curves in the band, at each FAR for itself.

    Returns:
        {"far", "tar", "low", "high"}, lists of one length: FAR from 1/negatives to 1, evenly spaced in its logarithm;
        TAR, the largest whose FAR does not exceed that (`tar_strict`); the band's ends. Where no resample has pairs
        of both kinds the band is 0 to 1: nothing is known.

    Raises:
        ValueError: as `roc`, or other lengths of `groups`.
    """
    score, same = of_both_kinds(score, same)
    far = np.geomspace(1 / np.count_nonzero(~same), 1, points)
    tar, low, high = _tar_with_band(score, same, groups, far, resamples, seed, level)
    return {"far": far.tolist(), "tar": tar.tolist(), "low": low.tolist(), "high": high.tolist()}


def tar_intervals(
    score: np.ndarray,
    same: np.ndarray,
    groups: Groups | None = None,
    targets: tuple[float, ...] = FAR_TARGETS,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, list[float]]:
    """Bootstrap interval of the strict TAR at each FAR: {"1e-06": [low, high], …}. The rest as `roc_summary`."""
    score, same = of_both_kinds(score, same)
    _, low, high = _tar_with_band(score, same, groups, np.array(targets), resamples, seed, level)
    return {str(target): [float(low[i]), float(high[i])] for i, target in enumerate(targets)}


def accuracy_interval(
    distance: np.ndarray,
    issame: np.ndarray,
    groups: Groups | None = None,
    *,
    folds: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[float]:
    """Bootstrap interval [low, high] of the mean of `fold_accuracy`.

    Folds stay what they are; pairs count in theirs as often as drawn, and each resample chooses its thresholds anew. A
    fold of which nothing was drawn is left out of the mean. Arguments as `fold_accuracy` and `roc_summary`.
    """
    distance, issame = checked(distance, issame)
    if len(distance) < folds:
        raise ValueError(f"{folds} folds need at least {folds} pairs, got {len(distance)}")
    cell = _cells(distance, issame, folds)
    identity, identities = _numbered(groups, np.arange(len(distance)), len(distance))
    pairs = _Pairs(identity, np.ones(len(distance)))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        weights = pairs.weights(_draw(identities, generator), generator)
        found.append(_weighted_accuracy(cell, weights, folds))
    low, high = _interval(np.array(found)[:, None], level)
    return [float(low[0]), float(high[0])]


def _cells(distance: np.ndarray, issame: np.ndarray, folds: int) -> np.ndarray:
    """One number for the fold, the kind and the first threshold above the distance of each pair; int64 [N]."""
    fold = np.repeat(np.arange(folds), [len(part) for part in np.array_split(distance, folds)])
    column = np.searchsorted(ACCURACY_THRESHOLDS, distance, side="right")  # the last: below none of them
    return (2 * fold + issame) * (len(ACCURACY_THRESHOLDS) + 1) + column


def _weighted_accuracy(cell: np.ndarray, weights: np.ndarray, folds: int) -> float:
    """Mean accuracy of the folds, as `fold_accuracy`, of pairs that count `weights` times; NaN when nothing does."""
    columns = len(ACCURACY_THRESHOLDS) + 1
    below = np.bincount(cell, weights, folds * 2 * columns).reshape(folds, 2, columns).cumsum(axis=2)
    different_F, same_F = below[:, 0, -1], below[:, 1, -1]
    correct_FT = below[:, 1, :-1] + different_F[:, None] - below[:, 0, :-1]
    best_F = np.argmax(correct_FT.sum(axis=0) - correct_FT, axis=1)
    used = different_F + same_F > 0
    accuracy_F = correct_FT[np.arange(folds), best_F][used] / (different_F + same_F)[used]
    return float(accuracy_F.mean()) if used.any() else float("nan")


def _tar_with_band(
    score: np.ndarray, same: np.ndarray, groups: Groups | None, far: np.ndarray, resamples: int, seed: int, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """TAR of all pairs at each FAR, and the ends of its interval."""
    positive, negative = np.sort(score[same]), np.sort(score[~same])
    values, counts = np.unique(positive, return_counts=True)
    edges = np.searchsorted(negative, values)  # different pairs below each step
    runs = np.diff(np.r_[0, edges, len(negative)])[::-1]
    tar = tar_of_steps(counts[::-1], runs, far)
    steps = _steps(score, same, groups)
    generator = np.random.default_rng(seed)
    found = [steps.tar(far, _draw(steps.identities, generator), generator) for _ in range(resamples)]
    low, high = _interval(np.array([row for row in found if row is not None]).reshape(-1, len(far)), level)
    return tar, low, high


def _steps(score: np.ndarray, same: np.ndarray, groups: Groups | None) -> _Steps:
    """The curve of the pairs that take part in resamples."""
    same_rows, same_for = _thinned(score, np.flatnonzero(same), decades=False)
    rows, stands_for = np.flatnonzero(~same), np.empty(0)
    if groups is not None:
        rows, stands_for = _thinned(score, rows, decades=True)
    values, step = np.unique(score[same_rows], return_inverse=True)
    step = len(values) - 1 - step
    run = len(values) - np.searchsorted(values, score[rows], side="right")
    if groups is None:  # a sum of Poisson numbers is one: runs are drawn as wholes
        sizes = np.bincount(run, minlength=len(values) + 1).astype(np.float64)
        return _Steps(_Pairs(None, same_for), step, _Pairs(None, sizes), np.arange(len(sizes)), len(values), 0)
    identity, identities = _numbered(groups, np.concatenate([same_rows, rows]), len(score))
    assert identity is not None
    same_pairs = _Pairs(identity[:, : len(same_rows)], same_for)
    return _Steps(same_pairs, step, _Pairs(identity[:, len(same_rows) :], stands_for), run, len(values), identities)


def _thinned(score: np.ndarray, rows: np.ndarray, decades: bool) -> tuple[np.ndarray, np.ndarray]:
    """At most KEPT of the rows, or of each decade of their share of the highest scores, and how many each is."""
    if len(rows) <= KEPT:
        return rows, np.ones(len(rows))
    falling = rows[np.argsort(score[rows])[::-1]]
    edges = [len(rows)]
    while decades and edges[-1] > KEPT:
        edges.append(edges[-1] // 10)
    edges = [0, *edges[::-1]] if decades else [0, *edges]
    kept, stands_for = [], []
    for start, stop in itertools.pairwise(edges):
        stride = -(-(stop - start) // KEPT)
        part = falling[start + stride // 2 : stop : stride]
        kept.append(part)
        stands_for.append(np.full(len(part), (stop - start) / len(part)))
    return np.concatenate(kept), np.concatenate(stands_for)


def _numbered(groups: Groups | None, rows: np.ndarray, length: int) -> tuple[np.ndarray | None, int]:
    """Identities of some of `length` pairs as numbers from 0, int64 [2, rows], and how many identities there are."""
    if groups is None:
        return None, 0
    first, second = (np.asarray(group) for group in groups)
    if first.shape != (length,) or second.shape != (length,):
        raise ValueError(f"expected two identities for each of {length} pairs, got {first.shape} and {second.shape}")
    names, number = np.unique(np.concatenate([first[rows], second[rows]]), return_inverse=True)
    return number.reshape(2, len(rows)), len(names)


def _draw(identities: int, generator: np.random.Generator) -> np.ndarray | None:
    """How often each identity is drawn when as many are drawn as there are; None without identities."""
    return generator.multinomial(identities, np.full(identities, 1 / identities)) if identities else None


def _interval(found: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles (1 ± level)/2 of the rows of [R, X] that are numbers; 0 and 1 when none is."""
    found = found[np.isfinite(found).all(axis=1)]
    if not len(found):
        return np.zeros(found.shape[1]), np.ones(found.shape[1])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
