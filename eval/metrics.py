"""Measures of verification, from scores and truth to the figures that are published. NumPy only.

Owns the counting: ten-fold accuracy, VAL at a FAR, ROC, equal error rate, true-accept rate at false-accept rates.
Two conventions, each the field's own: the fold protocols work on squared L2 distances of unit vectors ("same" when
below the threshold), the ROC family on similarities ("same" when the score reaches the threshold). A figure that the
data cannot give is None, never a silent zero. Proven by tests/eval/test_metrics.py, against references that count
pair by pair.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)  # squared distances of unit vectors lie in [0, 4]
VAL_THRESHOLDS = np.arange(0, 4, 0.001)
FAR_TARGETS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class FoldCounts:
    """Per fold, how many pairs of each kind lie below each threshold."""

    same_below: np.ndarray  # int64 [folds, T]
    different_below: np.ndarray  # int64 [folds, T]
    same: np.ndarray  # int64 [folds]
    different: np.ndarray  # int64 [folds]


@dataclass(frozen=True)
class Roc:
    """Points of a ROC curve, from nothing accepted to all; thresholds fall, the first is infinite."""

    different_accepted: np.ndarray  # int64 [P]
    same_accepted: np.ndarray  # int64 [P]
    thresholds: np.ndarray  # [P]

    @cached_property
    def fpr(self) -> np.ndarray:
        """Share of the different pairs that are accepted, float64 [P], 0 to 1."""
        return self.different_accepted / self.different_accepted[-1]

    @cached_property
    def tpr(self) -> np.ndarray:
        """Share of the same pairs that are accepted, float64 [P], 0 to 1."""
        return self.same_accepted / self.same_accepted[-1]


def count_folds(distance: np.ndarray, issame: np.ndarray, thresholds: np.ndarray, folds: int = 10) -> FoldCounts:
    """Count pairs below each threshold in consecutive folds (no shuffle; the first n mod `folds` get one pair more).

    Args:
        distance: float [N], squared L2 distances.
        issame: bool [N].
        thresholds: float [T], rising.
        folds: how many.

    Raises:
        ValueError: lengths differ, or there are fewer pairs than folds.
    """
    distance, issame = _checked(distance, issame)
    if len(distance) < folds:
        raise ValueError(f"{folds} folds need at least {folds} pairs, got {len(distance)}")
    same_below, different_below = [], []
    parts = zip(np.array_split(distance, folds), np.array_split(issame, folds), strict=True)
    for fold_distance, fold_issame in parts:
        same_below.append(np.searchsorted(np.sort(fold_distance[fold_issame]), thresholds, side="left"))
        different_below.append(np.searchsorted(np.sort(fold_distance[~fold_issame]), thresholds, side="left"))
    same = np.array([int(part.sum()) for part in np.array_split(issame, folds)])
    size = np.array([len(part) for part in np.array_split(issame, folds)])
    return FoldCounts(np.stack(same_below), np.stack(different_below), same, size - same)


def fold_accuracy(distance: np.ndarray, issame: np.ndarray, folds: int = 10) -> np.ndarray:
    """Accuracy of each fold at the threshold that is best on the other folds (the first of equals); float64 [folds].

    accuracy(t) = (#same with d < t + #different with d ≥ t) / #pairs, t in 0..4 by 0.01. Protocol of LFW (Huang et
    al. 2007, image-restricted ten folds) as run on all `.bin` sets.
    """
    counts = count_folds(distance, issame, ACCURACY_THRESHOLDS, folds)
    correct_FT = counts.same_below + counts.different[:, None] - counts.different_below
    best_F = np.argmax(correct_FT.sum(axis=0) - correct_FT, axis=1)  # of the other folds; argmax takes the first
    return correct_FT[np.arange(folds), best_F] / (counts.same + counts.different)


def fold_val(
    distance: np.ndarray, issame: np.ndarray, target: float = 1e-3, folds: int = 10
) -> tuple[float | None, float | None, list[int]]:
    """Validation rate at a false-accept rate (Schroff et al., FaceNet, 2015), averaged over folds.

    Per fold: the threshold where the FAR of the other folds is `target`, by linear interpolation of the FAR over
    0..4 by 0.001; 0 when it never gets there. VAL = share of the fold's same pairs below it, FAR = share of its
    different pairs below it.

    Returns:
        VAL, FAR (None when no fold can be used), and the numbers of the folds left out: those without a positive or
        without a negative pair, and those whose other folds have no negative pair.
    """
    distance, issame = _checked(distance, issame)
    counts = count_folds(distance, issame, VAL_THRESHOLDS, folds)
    fold_distances, fold_issames = np.array_split(distance, folds), np.array_split(issame, folds)
    values, rates, left_out = [], [], []
    for fold in range(folds):
        others = int(counts.different.sum() - counts.different[fold])
        if counts.same[fold] == 0 or counts.different[fold] == 0 or others == 0:
            left_out.append(fold)
            continue
        far_T = (counts.different_below.sum(axis=0) - counts.different_below[fold]) / others
        # np.interp, on a stretch where the FAR equals the target, takes its upper end: the highest VAL at that FAR.
        threshold = float(np.interp(target, far_T, VAL_THRESHOLDS)) if far_T[-1] >= target else 0.0
        below = fold_distances[fold] < threshold
        values.append(np.count_nonzero(below & fold_issames[fold]) / counts.same[fold])
        rates.append(np.count_nonzero(below & ~fold_issames[fold]) / counts.different[fold])
    if not values:
        return None, None, left_out
    return float(np.mean(values)), float(np.mean(rates)), left_out


def roc(score: np.ndarray, issame: np.ndarray, drop_collinear: bool = True) -> Roc:
    """ROC curve of similarities, as scikit-learn's `roc_curve` gives it.

    One point per distinct score; with `drop_collinear` points inside straight runs are left out.

    Args:
        score: float [N], higher is more alike.
        issame: bool [N].
        drop_collinear: what scikit-learn calls drop_intermediate.

    Raises:
        ValueError: a score that is not finite, or no pair of one of the two kinds.
    """
    score, issame = _checked(score, issame)
    positives = int(np.count_nonzero(issame))
    if positives == 0 or positives == len(issame):
        raise ValueError(f"a ROC curve needs pairs of both kinds, got {positives} same of {len(issame)}")
    order = np.argsort(score, kind="stable")[::-1]
    score, issame = score[order], issame[order]
    last = np.r_[np.flatnonzero(np.diff(score)), len(score) - 1]  # the last of each group of equal scores
    accepted_same = np.cumsum(issame)[last]
    curve = Roc(np.r_[0, 1 + last - accepted_same], np.r_[0, accepted_same], np.r_[np.inf, score[last]])
    return without_collinear(curve) if drop_collinear else curve


def without_collinear(curve: Roc) -> Roc:
    """Leave out points inside straight runs; like scikit-learn's, it looks for them from the second point on."""
    same, different = curve.same_accepted[1:], curve.different_accepted[1:]
    if len(same) < 3:
        return curve
    bend = (np.diff(same, 2) != 0) | (np.diff(different, 2) != 0)
    keep = np.r_[True, True, bend, True]
    return Roc(curve.different_accepted[keep], curve.same_accepted[keep], curve.thresholds[keep])


def tar_nearest(curve: Roc, target: float) -> float:
    """True-accept rate at the curve's point whose FPR is nearest to `target`; at a tie the one with the higher FPR.

    The reading of the IJB scripts in use; meant for the curve with collinear points dropped.
    """
    gap = np.abs(curve.fpr - target)
    return float(curve.tpr[len(gap) - 1 - np.argmin(gap[::-1])])


def tar_strict(curve: Roc, target: float) -> float:
    """Largest true-accept rate whose FPR does not exceed `target`; meant for the curve with all its points."""
    return float(curve.tpr[np.searchsorted(curve.fpr, target, side="right") - 1])


def tar_at_far(
    score: np.ndarray, issame: np.ndarray, targets: tuple[float, ...] = FAR_TARGETS
) -> dict[str, dict[str, float]]:
    """Both readings of TAR at FAR: {"nearest": {"1e-06": …, …}, "strict": {…}}. Arguments and errors as `roc`."""
    full = roc(score, issame, drop_collinear=False)
    ends = without_collinear(full)
    return {
        "nearest": {str(target): tar_nearest(ends, target) for target in targets},
        "strict": {str(target): tar_strict(full, target) for target in targets},
    }


def equal_error_rate(curve: Roc) -> float:
    """Error rate where FPR = 1 − TPR, on the straight line between the two points around the crossing."""
    excess = curve.fpr - (1 - curve.tpr)  # rises from −1 to 1
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(curve.fpr[after - 1] + share * (curve.fpr[after] - curve.fpr[after - 1]))


def _checked(values: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, issame = np.asarray(values), np.asarray(issame)
    if values.ndim != 1 or values.shape != issame.shape:
        raise ValueError(f"expected two vectors of one length, got shapes {values.shape} and {issame.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} scores are not finite")
    return values, issame.astype(bool)
