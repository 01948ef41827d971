"""The ROC curve of similarities and what is read off it: TAR and threshold at FAR, equal error rate, DET points.

A pair counts as "same" when its score reaches the threshold. The curve and the DET points are scikit-learn's. Proven
by tests/eval/test_metrics.py, against scikit-learn and against references that count pair by pair.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

FAR_TARGETS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


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
    score, issame = of_both_kinds(score, issame)
    positives = int(np.count_nonzero(issame))
    # Values are sorted, not positions: many times as fast, and of a second vector nothing has to follow.
    ordered = np.sort(score)
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of each group of equal scores
    below_same = np.zeros(len(begins) + 1, np.int64)  # same pairs in the groups before each
    np.cumsum(np.bincount(np.searchsorted(ordered[begins], score[issame]), minlength=len(begins)), out=below_same[1:])
    accepted = len(score) - np.r_[begins, len(score)][::-1]
    accepted_same = (positives - below_same)[::-1]
    curve = Roc(accepted - accepted_same, accepted_same, np.r_[np.inf, ordered[begins][::-1]])
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


def threshold_at_far(
    score: np.ndarray, issame: np.ndarray, targets: tuple[float, ...] = FAR_TARGETS
) -> dict[str, float | None]:
    """Thresholds at which the share of the different pairs that reach them does not exceed each target.

    The lowest such is the one of `tar_strict`; this is halfway from the highest different pair that is refused to the
    next score above it, which counts the same here, and the last bit of a score made elsewhere decides nothing.

    Args:
        score: float64 [N], higher is more alike.
        issame: bool [N].
        targets: FARs, above 0 and below 1.

    Returns:
        {"0.1": threshold, …}, None where there are too few different pairs: fewer than 1 / target.
    """
    score, issame = checked(score, issame)
    ordered = np.sort(score.astype(np.float64))
    different = np.sort(score[~issame].astype(np.float64))
    found: dict[str, float | None] = {}
    for target in targets:
        accepted = min(int(target * len(different)) + 1, len(different))
        while accepted and accepted / len(different) > target:  # the largest whose share is not above it
            accepted -= 1
        found[str(target)] = _above(ordered, different[-1 - accepted]) if accepted else None
    return found


def _above(ordered: np.ndarray, refused: float) -> float:
    """Halfway from a score to the next above it, or next to it where there is none between."""
    higher = ordered[np.searchsorted(ordered, refused, side="right") :]
    halfway = (refused + higher[0]) / 2 if len(higher) else refused
    return float(halfway if halfway > refused else np.nextafter(refused, np.inf))


def equal_error_rate(curve: Roc) -> float:
    """Error rate where FPR = 1 − TPR, on the straight line between the two points around the crossing."""
    excess = curve.fpr - (1 - curve.tpr)  # rises from −1 to 1
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(curve.fpr[after - 1] + share * (curve.fpr[after] - curve.fpr[after - 1]))


def det_points(curve: Roc) -> tuple[np.ndarray, np.ndarray]:
    """Points of a detection-error-tradeoff plot, those of scikit-learn's `det_curve` in the order of a rising FMR.

    From the last point without a false match to the first without a false non-match; points between two of the same
    FNMR are left out. Plots show both axes as normal deviates (Martin et al. 1997), where 0 and 1 lie at infinity.

    Args:
        curve: with all its points (`drop_collinear=False`).

    Returns:
        FMR (share of the different pairs accepted), rising; FNMR (share of the same pairs refused); float64 [P].
    """
    same, different = curve.same_accepted, curve.different_accepted
    moved = np.diff(same) != 0
    keep = np.flatnonzero(np.r_[True, moved[:-1] | moved[1:], True])
    same, different = same[keep], different[keep]
    part = slice(np.searchsorted(different, 0, side="right") - 1, np.searchsorted(same, same[-1]) + 1)
    return different[part] / different[-1], (same[-1] - same[part]) / same[-1]


def checked(values: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two vectors of one length, finite values and booleans; ValueError otherwise."""
    values, issame = np.asarray(values), np.asarray(issame)
    if values.ndim != 1 or values.shape != issame.shape:
        raise ValueError(f"expected two vectors of one length, got shapes {values.shape} and {issame.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} scores are not finite")
    return values, issame.astype(bool)


def of_both_kinds(score: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `checked`, with pairs of both kinds among them; ValueError otherwise."""
    score, issame = checked(score, issame)
    positives = np.count_nonzero(issame)
    if positives == 0 or positives == len(issame):
        raise ValueError(f"a ROC curve needs pairs of both kinds, got {positives} same of {len(issame)}")
    return score, issame
