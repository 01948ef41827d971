"""What the norm is worth when faces are compared: score distributions and error versus discard, of `.bin` sets and IJB.

Owns the paper's Fig. 9 and Table 1 as numbers ("A Quality Aware Sample-to-Sample Comparison for Face Recognition", WACV
2023), and the test of a quality measure that the field uses: how many false non-matches are left when the pairs of the
lowest quality are thrown away (Grother & Tabassi, 2007). The quality of an image is its embedding's norm, of a template
the mean over its media of the faces' mean norm, of a pair that of its worse side. Scores are cosines.
Proven by tests/eval/test_quality_pairs.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval import metrics
from eval.embed import Embed
from eval.ijb import load_ijb, pair_scores, template_features
from eval.ijb_cache import EmbeddingCache
from eval.ijb_faces import embed_faces
from eval.quality_figures import summary
from eval.verification import embed_with_mirror, load_bin, reduce_to, score, similarity, squared_distances

EDGES = np.linspace(-1, 1, 101)  # of the scores' histograms
FMR = 1e-3


def measure_set(
    embed: Embed, path: str | Path, sides: Sequence[int], fmr: float = FMR, progress: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A verification set as it is and reduced: rows as `eval.verification.score`, and pairs as `compare`."""
    pairs = load_bin(path)
    rows, compared = [], []
    for side in (None, *sides):
        images = reduce_to(pairs.images, side) if side else pairs.images
        title = pairs.name + (f" {side}×{side}" if side else "")
        with tqdm(total=len(images), desc=title, unit="image", disable=None if progress else True, leave=False) as bar:
            sums, norm = embed_with_mirror(embed, images, bar)
        rows.append(score(sums, norm, pairs.issame, pairs.name, side))
        cosine = similarity(squared_distances(sums))
        figures = compare(cosine, pairs.issame, norm[0::2], norm[1::2], fmr)
        compared.append({"set": pairs.name, "path": str(path), "degrade": side, **figures})
    return rows, compared


def measure_ijb(
    embed: Embed, folder: str | Path, fmr: float = FMR, progress: bool = False,
    cache: tuple[str | Path, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """An IJB folder's 1:1 pairs, as `compare`; the templates are those of eval.ijb, and so is `cache`, see there."""
    ijb = load_ijb(folder, protocols=["1:1"])
    kept = EmbeddingCache(*cache, ijb) if cache else None
    features = embed_faces(embed, ijb, use_detector_score=False, progress=progress, cache=kept)
    norm = np.linalg.norm(features, axis=1) / 2  # of the mean of image and mirror
    features *= ijb.scores[:, None].astype(np.float32)
    templates = template_features(features, ijb.template, ijb.media, len(ijb.template_ids))
    quality = template_quality(norm, ijb.template, ijb.media, len(ijb.template_ids))
    cosine = pair_scores(templates, ijb.first, ijb.second)
    figures = compare(cosine, ijb.issame, quality[ijb.first], quality[ijb.second], fmr)
    return {"set": str(folder), "path": str(folder), "degrade": None, **figures}


def template_quality(norm: np.ndarray, template: np.ndarray, media: np.ndarray, templates: int) -> np.ndarray:
    """Mean over a template's media of the mean norm of their faces; norm [F], template int [F], media int [F] → [T]."""
    pairs, group = np.unique(np.stack([template, media]), axis=1, return_inverse=True)
    group = group.reshape(-1)
    of_media = np.bincount(group, norm.astype(np.float64)) / np.bincount(group)
    return np.bincount(pairs[0], of_media, templates) / np.maximum(np.bincount(pairs[0], minlength=templates), 1)


def compare(
    cosine: np.ndarray, issame: np.ndarray, first: np.ndarray, second: np.ndarray, fmr: float = FMR
) -> dict[str, Any]:
    """Distributions of scores, and what discarding by quality does.

    Args:
        cosine: of each pair, [N].
        issame: bool [N].
        first: quality of each pair's first side, [N].
        second: likewise.
        fmr: the false-match rate whose threshold the errors are counted at.

    Returns:
        {"pairs", "edges", "same", "different": `quality_figures.summary` of the scores, None without such pairs,
        "discard": {"fmr", and as `metrics.error_vs_discard`}, None with pairs of one kind only}.
    """
    cosine, one_kind = cosine.astype(np.float64), issame.all() or not issame.any()
    quality = first.astype(np.float64), second.astype(np.float64)
    return {
        "pairs": len(issame),
        "edges": EDGES.tolist(),
        "same": summary(np.clip(cosine[issame], -1, 1), EDGES),
        "different": summary(np.clip(cosine[~issame], -1, 1), EDGES),
        "discard": None if one_kind else {"fmr": fmr, **metrics.error_vs_discard(cosine, issame, quality, fmr=fmr)},
    }
