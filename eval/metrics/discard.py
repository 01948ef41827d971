"""Error versus discard: what a quality score is worth as a reason to throw pictures away.

Proven by tests/eval/test_metrics_discard.py, against the definition written out pair by pair.
"""

from typing import Any

import numpy as np

from eval.metrics.curve import checked, of_both_kinds


def error_vs_discard(
    score: np.ndarray,
    same: np.ndarray,
    quality: np.ndarray | tuple[np.ndarray, np.ndarray],
    *,
    fmr: float = 1e-3,
    most: float = 0.95,
    points: int = 96,
) -> dict[str, Any]:
    """FNMR at a fixed threshold as the same pairs of the lowest quality are thrown away (Grother & Tabassi 2007).

    The threshold is the lowest at which no more than a share `fmr` of the different pairs, all of them, is accepted;
    it stays as it is. A pair's quality is that of its worse side. At a discard of r the ⌊r·n⌋ worst of the n same
    pairs are gone, FNMR = those left below the threshold / those left. Of pairs of one quality each is as likely gone
    as the next: their mean counts, so that the order of the pairs changes nothing.

    Args:
        score: float [N], higher is more alike.
        same: bool [N].
        quality: float [N] of the pairs, or of both sides, two of [N]; higher is better.
        fmr: share of different pairs that may be accepted, from 0, below 1.
        most: the largest share thrown away, below 1.
        points: of the curve.

    Returns:
        {"discard": [points] from 0 to `most`, "fnmr": [points], "area": under that curve by the trapezoid rule,
        "threshold": a pair is accepted when its score is above it}.

    Raises:
        ValueError: no pair of one of the two kinds, a number that is not finite, settings out of range.
    """
    score, same = of_both_kinds(score, same)
    worse = np.minimum(*quality) if isinstance(quality, tuple) else np.asarray(quality)
    worse, _ = checked(worse, same)
    if not (0 <= fmr < 1 and 0 <= most < 1 and points >= 2):
        raise ValueError(f"expected 0 ≤ fmr < 1, 0 ≤ most < 1 and two points or more, got {fmr}, {most}, {points}")
    others = np.sort(score[~same])[::-1]
    allowed = np.count_nonzero(np.arange(1, len(others) + 1) / len(others) <= fmr)
    threshold = others[allowed]  # the best of those that must be refused
    wrong, worse = score[same] <= threshold, worse[same]
    _, group, size = np.unique(worse, return_inverse=True, return_counts=True)
    ends = np.r_[0, np.cumsum(size)]
    errors_gone = np.r_[0, np.cumsum(np.bincount(group, wrong))]
    discard = np.linspace(0, most, points)
    gone = np.floor(discard * len(worse) + 1e-9)  # 0.29 · 100 is 28.999999999999996
    left = len(worse) - gone
    fnmr = (errors_gone[-1] - np.interp(gone, ends, errors_gone)) / left
    return {
        "discard": discard.tolist(),
        "fnmr": np.maximum(fnmr, 0).tolist(),
        "area": float(np.trapezoid(fnmr, discard)),
        "threshold": float(threshold),
    }
