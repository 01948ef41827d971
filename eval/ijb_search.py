"""IJB 1:N: who is this probe, if anybody of the gallery?

Owns the use of the lists; the counting is eval/metrics'. Two readings: each gallery by itself, where the probes without
a mate in it give the threshold, and their mean; and both galleries as one, where every probe has its mate. Proven by
tests/eval/test_ijb.py, against both written out probe by probe.
"""

from typing import Any

import numpy as np

from eval import metrics
from eval.ijb_lists import IjbSet

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
MEGABYTES = 64  # of similarities at a time


def identify_templates(ijb: IjbSet, templates: np.ndarray) -> dict[str, Any]:
    """Figures of 1:N from the features of all templates, unit length, [T, d].

    Returns:
        {"G1": {"rank1", "rank5", "rank10", "tpir@0.01", "tpir@0.1", "mated", "non_mated"}, "G2": {…}, "mean": {…},
        "merged": {…}} (IJB-B: S1, S2). "mean" is over the galleries: of rank-k all hits over all mated probes, of TPIR
        the average, of the counts the sum. A figure that the lists cannot give is None.
    """
    lists = ijb.search
    assert lists is not None  # read when 1:N is run
    result: dict[str, Any] = {}
    ranks = []
    for name, gallery in lists.galleries.items():
        search = _search(ijb, templates, gallery)
        result[name] = _figures(search)
        ranks.append(search.rank[search.mated])
    result["mean"] = _mean(list(result.values()), np.concatenate(ranks))
    result["merged"] = _figures(_search(ijb, templates, np.concatenate(list(lists.galleries.values()))), merged=True)
    return result


def _search(ijb: IjbSet, templates: np.ndarray, gallery: np.ndarray) -> metrics.Search:
    lists = ijb.search
    assert lists is not None
    return metrics.search_gallery(
        templates[lists.probe], templates[gallery], lists.subject[lists.probe], lists.subject[gallery],
        megabytes=MEGABYTES, largest_fpir=max(FPIRS),
    )  # fmt: skip


def _figures(search: metrics.Search, merged: bool = False) -> dict[str, Any]:
    mated = int(np.count_nonzero(search.mated))
    return {
        **{f"rank{k}": metrics.rank_k(search, k) for k in RANKS},
        **{f"tpir@{fpir}": metrics.tpir_at_fpir(search, fpir, merged) for fpir in FPIRS},
        "mated": mated,
        "non_mated": len(search.mated) - mated,
    }


def _mean(galleries: list[dict[str, Any]], ranks: np.ndarray) -> dict[str, Any]:
    tpir = {f"tpir@{fpir}": [gallery[f"tpir@{fpir}"] for gallery in galleries] for fpir in FPIRS}
    return {
        **{f"rank{k}": float(np.mean(ranks <= k)) if len(ranks) else None for k in RANKS},
        **{key: None if None in values else float(np.mean(values)) for key, values in tpir.items()},
        **{key: sum(gallery[key] for gallery in galleries) for key in ("mated", "non_mated")},
    }
