"""What eval/quality.py computes, as pure functions of NumPy arrays.

Owns the weight f(z), the cosines of embeddings to centres, and how many numbers become a few and a histogram. Unit
vectors are float32 and made in float64, everything else is float64; a value that does not exist is NaN in arrays and
None in figures. M rows, N images, V versions of them, the originals first, d embedding size.
Proven by tests/eval/test_quality.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
BINS = 60
ROWS_AT_ONCE = 512


def quality_weight(norm: np.ndarray, mean: float, deviation: float, tau: float) -> np.ndarray:
    """f(z) = exp(−z) where z = (norm − μ)/σ ≥ −τ, else 0 (the paper's eqs. 10, 11). Norm 0 has no direction: 0 too."""
    z = (norm - mean) / deviation
    return np.where((z >= -tau) & (norm > 0), np.exp(-np.maximum(z, -tau)), 0.0)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows […, d] at unit length, float32; a zero row stays zero."""
    length = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32)


def cosines_to_centers(
    embedding: np.ndarray, label: np.ndarray, centers: Iterable[tuple[int, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of unit rows [M, d] to the centre of their label [M] and to the nearest of all others, [M] each.

    centers: blocks (first class, rows [n, d], or [n, K, d] where a class has K centres: its nearest counts), of any
    length. NaN where a row has no own or no other centre.
    """
    own, other = np.full(len(embedding), np.nan), np.full(len(embedding), -np.inf)
    for start, block in centers:
        directions = unit(block).reshape(-1, block.shape[-1]).T
        for low in range(0, len(embedding), ROWS_AT_ONCE):
            rows = np.arange(low, min(low + ROWS_AT_ONCE, len(embedding)))
            cosine = (embedding[rows] @ directions).reshape(len(rows), len(block), -1).max(axis=2)
            column = label[rows] - start
            mine = np.flatnonzero((column >= 0) & (column < len(block)))
            own[rows[mine]] = cosine[mine, column[mine]]
            cosine[mine, column[mine]] = -np.inf
            other[rows] = np.maximum(other[rows], cosine.max(axis=1))
    other[np.isneginf(other)] = np.nan
    return np.clip(own, -1, 1), np.clip(other, -1, 1)


def cosines_to_means(embedding: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `cosines_to_centers`, with the class means of the originals embedding[0] as centres: [V, N, d] → [V, N] each.

    The mean of an image's own class leaves out its own original, so that no version meets itself; NaN in a class of
    one image.
    """
    originals = embedding[0].astype(np.float64)
    _, label, count = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), originals.shape[1]))
    np.add.at(sums, label, originals)
    without = unit(sums[label] - originals)
    own = np.clip(np.einsum("vnd,nd->vn", embedding, without, dtype=np.float64), -1, 1)
    own[:, count[label] < 2] = np.nan
    other = [cosines_to_centers(rows, label, [(0, sums)])[1] for rows in embedding]
    return own, np.stack(other)


def edges_over(arrays: Sequence[np.ndarray], *also: float) -> np.ndarray:
    """Edges of BINS equal bins, float64, from the smallest to the largest value of all arrays and of `also`.

    Where there is but one value, from there to 1 above.
    """
    low = min([float(values.min()) for values in arrays] + [*also])
    high = max([float(values.max()) for values in arrays] + [*also])
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def summary(values: np.ndarray | None, edges: np.ndarray) -> dict[str, Any] | None:
    """{count, mean, deviation, quantiles, histogram} of the values that are not NaN; None when there are none."""
    if values is None or not (values := values[~np.isnan(values)]).size:
        return None
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "quantiles": {str(share): float(np.quantile(values, share)) for share in QUANTILES},
        "histogram": np.histogram(values, edges)[0].tolist(),
    }


def correlation(first: np.ndarray, second: np.ndarray | None) -> float | None:
    """Pearson's, over the places where neither is NaN; None where it does not exist."""
    if second is None:
        return None
    both = ~np.isnan(first) & ~np.isnan(second)
    first, second = first[both], second[both]
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
