"""Measures of verification and identification, from scores and truth to the figures that are published. NumPy only.

`folds` has the ten-fold figures, `curve` the ROC and what is read off it, `bands` how sure those are, `gallery`
identification, `discard` what a quality score is worth. Two conventions, each the field's own: the fold protocols
work on squared L2 distances of unit vectors ("same" when below the threshold), everything else on similarities ("same"
when the score reaches the threshold). A figure that the data cannot give is None, never a silent zero. Proven by
tests/eval/test_metrics.py and the files that its parts name.
"""

from eval.metrics.bands import accuracy_interval, roc_summary, tar_intervals
from eval.metrics.curve import (
    FAR_TARGETS,
    Roc,
    det_points,
    equal_error_rate,
    roc,
    tar_at_far,
    tar_nearest,
    tar_strict,
    threshold_at_far,
    without_collinear,
)
from eval.metrics.discard import error_vs_discard
from eval.metrics.folds import (
    ACCURACY_THRESHOLDS,
    VAL_THRESHOLDS,
    FoldCounts,
    count_folds,
    fold_accuracy,
    fold_val,
)
from eval.metrics.gallery import Search, mean_average_precision, rank_k, search_gallery, tpir_at_fpir

__all__ = [
    "ACCURACY_THRESHOLDS", "FAR_TARGETS", "VAL_THRESHOLDS",
    "FoldCounts", "Roc", "Search",
    "accuracy_interval", "count_folds", "det_points", "equal_error_rate", "error_vs_discard", "fold_accuracy",
    "fold_val", "mean_average_precision", "rank_k", "roc", "roc_summary", "search_gallery", "tar_at_far",
    "tar_intervals", "tar_nearest", "tar_strict", "threshold_at_far", "tpir_at_fpir", "without_collinear",
]  # fmt: skip
