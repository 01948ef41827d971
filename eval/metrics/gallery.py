"""Identification: probes against a gallery; rank-k, TPIR at FPIR, mean average precision.

`search_gallery` compares blocks of probes with the whole gallery, so that no similarity matrix is ever whole, and
keeps per probe what all figures need. A mate is a gallery entry of the probe's subject, a probe that has one is mated.
Where scores are equal the mate stands last: a model that gives everything one score finds nobody. Proven by
tests/eval/test_metrics_gallery.py, against the definitions written out and scikit-learn's average precision.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Search:
    """What a search of n probes found. Scores are dot products; −∞ stands for one that there is not."""

    mated: np.ndarray  # bool [n]
    rank: np.ndarray  # int64 [n], of the best mate, from 1; 0 for a probe without mate
    mate_score: np.ndarray  # float [n], the best mate's
    other_score: np.ndarray  # float [n], the best non-mate's
    precision: np.ndarray  # float64 [n], average precision by steps; 0 for a probe without mate
    trapezoid_precision: np.ndarray  # float64 [n], average precision by trapezoids; 0 for a probe without mate
    largest_others: np.ndarray  # float [K], the largest of all scores of non-mates, falling
    others: int  # how many scores of non-mates there were


def search_gallery(
    probe: np.ndarray,
    gallery: np.ndarray,
    probe_subject: np.ndarray,
    gallery_subject: np.ndarray,
    *,
    megabytes: int = 128,
    largest_fpir: float = 0.1,
) -> Search:
    """Compare every probe with every gallery entry.

    Args:
        probe: float [n, d], unit length; what takes part in the dot products.
        gallery: float [m, d]; a subject may have several entries.
        probe_subject: [n], who they are, numbers or text.
        gallery_subject: [m].
        megabytes: of similarities, masks and copies of them in memory at a time.
        largest_fpir: K of `Search.largest_others` is ⌈n · largest_fpir⌉, what `tpir_at_fpir` needs up to there.

    Raises:
        ValueError: shapes that do not fit each other, an empty gallery, a score that is not finite.
    """
    n, m = len(probe), len(gallery)
    if probe.ndim != 2 or gallery.ndim != 2 or probe.shape[1] != gallery.shape[1] or m == 0:
        raise ValueError(f"expected probes [n, d] and a gallery [m, d], got {list(probe.shape)}, {list(gallery.shape)}")
    if np.shape(probe_subject) != (n,) or np.shape(gallery_subject) != (m,):
        shapes = list(np.shape(probe_subject)), list(np.shape(gallery_subject))
        raise ValueError(f"expected a subject for each of {n} probes and {m} gallery entries, got {shapes}")
    # One numbering for both: numbers compare faster than names.
    _, number = np.unique(np.concatenate([probe_subject, gallery_subject]), return_inverse=True)
    dtype = np.result_type(probe, gallery)
    block = max(1, (megabytes << 20) // (m * (4 * dtype.itemsize + 3)))  # at most four copies and three masks
    wanted = math.ceil(n * largest_fpir)
    parts, largest, others = [], np.empty(0, dtype), 0
    for start in range(0, n, block):
        rows = slice(start, start + block)
        similarity = probe[rows] @ gallery.T
        if not np.isfinite(similarity).all():
            raise ValueError(f"scores of probes {start} to {start + len(similarity) - 1} are not finite")
        mate = number[:n][rows, None] == number[None, n:]
        parts.append(_search_block(similarity, mate))
        others += mate.size - int(np.count_nonzero(mate))
        # Once there are enough, only what is above the smallest of them matters.
        above = similarity > largest.min() if wanted and len(largest) == wanted else np.True_
        largest = _largest(np.concatenate([largest, similarity[~mate & above]]), wanted)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0)] * 5
    rank, mate_score, other_score, steps, trapezoids = columns
    largest = np.sort(largest)[::-1]
    return Search(rank > 0, rank.astype(np.int64), mate_score, other_score, steps, trapezoids, largest, others)


def _search_block(similarity: np.ndarray, mate: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each row: rank, best mate's score, best non-mate's score, average precision by steps and by trapezoids."""
    others = np.where(mate, -np.inf, similarity)
    mate_score = np.where(mate, similarity, -np.inf).max(axis=1)
    rank = np.where(mate.any(axis=1), 1 + np.count_nonzero(others >= mate_score[:, None], axis=1), 0)
    precisions = np.zeros((2, len(similarity)))
    for row in np.flatnonzero(rank):
        scores = np.sort(similarity[row, mate[row]])[::-1]
        before = np.array([rank[row] - 1])  # non-mates at or above each mate
        if len(scores) > 1:
            here = np.sort(others[row])
            before = len(here) - np.searchsorted(here, scores)
        precisions[:, row] = _average_precisions(scores, before)
    return rank, mate_score, others.max(axis=1), *precisions


def _average_precisions(scores: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Average precision by steps and by trapezoids; `scores` of mates, falling, each with `before` non-mates before."""
    found = np.searchsorted(-scores, -scores, side="right")  # mates at or above each
    place = np.arange(1, len(scores) + 1) + before
    after = np.arange(1, len(scores) + 1) / place
    ahead = np.where(place > 1, np.arange(len(scores)) / np.maximum(place - 1, 1), 1)
    return float(np.mean(found / (found + before))), float(np.mean((ahead + after) / 2))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    return values if len(values) <= count else np.partition(values, len(values) - count)[len(values) - count :]


def rank_k(search: Search, k: int) -> float | None:
    """Share of the mated probes with a mate among the first k; None without mated probes."""
    return float(np.mean(search.rank[search.mated] <= k)) if search.mated.any() else None


def mean_average_precision(search: Search, trapezoid: bool = False) -> float | None:
    """Mean over the mated probes of the average precision; None without mated probes.

    By steps, as scikit-learn's `average_precision_score`: the mean over the mates of the share of mates among all
    entries at or above their score. By trapezoids, as TinyFace's own protocol (Cheng et al. 2018): of each mate the
    mean of the precision at its place and of that one place before, which counts as 1 before the first place.
    """
    precision = search.trapezoid_precision if trapezoid else search.precision
    return float(np.mean(precision[search.mated])) if search.mated.any() else None


def tpir_at_fpir(search: Search, fpir: float, merged: bool = False) -> float | None:
    """True-positive identification rate at a false-positive identification rate, in one of two readings.

    One gallery (`merged` false): of the n probes without mate the best scores, sorted downwards; the threshold is the
    one at index max(int(n · FPIR) − 1, 0). A hit has its mate first and above the threshold. None without such probes.

    Merged galleries, in which every probe has its mate: the threshold is the ⌈probes · FPIR⌉-th largest of all scores
    of non-mates; a hit has its mate above it, first or not. None where there are fewer such scores than that.

    Returns:
        hits / mated probes; None where there are none.

    Raises:
        ValueError: an FPIR outside (0, 1], or above what the search kept scores for.
    """
    if not 0 < fpir <= 1:
        raise ValueError(f"expected an FPIR above 0 and up to 1, got {fpir}")
    if not search.mated.any():
        return None
    if merged:
        index = math.ceil(len(search.mated) * fpir) - 1
        scores = search.largest_others
    else:
        scores = np.sort(search.other_score[~search.mated])[::-1]
        index = max(int(len(scores) * fpir) - 1, 0)
    if len(scores) == 0 or (merged and len(scores) == search.others <= index):
        return None
    if index >= len(scores):
        raise ValueError(f"the search kept {len(scores)} scores of non-mates, an FPIR of {fpir} needs {index + 1}")
    hit = search.mate_score > scores[index]
    if not merged:
        hit &= search.rank == 1
    return float(np.mean(hit[search.mated]))
