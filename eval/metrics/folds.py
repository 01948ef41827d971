"""Ten-fold figures of a verification set: accuracy, and VAL at a FAR.

Works on squared L2 distances of unit vectors; a pair counts as "same" when it lies below the threshold. Folds are
consecutive, never shuffled. Proven by tests/eval/test_metrics.py, against references that count pair by pair.
"""

from dataclasses import dataclass

import numpy as np

from eval.metrics.curve import checked

ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)  # squared distances of unit vectors lie in [0, 4]
VAL_THRESHOLDS = np.arange(0, 4, 0.001)


@dataclass(frozen=True)
class FoldCounts:
    """Per fold, how many pairs of each kind lie below each threshold."""

    same_below: np.ndarray  # int64 [folds, T]
    different_below: np.ndarray  # int64 [folds, T]
    same: np.ndarray  # int64 [folds]
    different: np.ndarray  # int64 [folds]


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
    distance, issame = checked(distance, issame)
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
    distance, issame = checked(distance, issame)
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
