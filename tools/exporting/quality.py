"""μ and σ of the norms, by which an exported file turns the length of an embedding into a quality.

z = (‖x‖ − μ) / σ (eq. 10 of "A Quality Aware Sample-to-Sample Comparison for Face Recognition", WACV 2023), and an
image with z < −τ is unrecognisable (eq. 11): training by QAFace gives it no weight. A run's own μ and σ are of the
momentum backbone's norms (or the online one's, `norm_source`) on augmented training images; the exported network is the
online one, and how near its norms are is measured in docs/deployment.md. Without them they are measured on images.
Proven by tests/tools/exporting/test_quality_output.py.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.norm_quality import KEYS
from recognition import checkpoint
from recognition.distributed import Ranks
from recognition.errors import NumericsError
from recognition.memory import QAFace

QUALITY_KEYS = (*KEYS, "quality_source")  # of an exported file's metadata


@dataclass(frozen=True)
class Norms:
    """mean, deviation: μ and σ.  threshold: −τ, below is unrecognisable.  source: where they are from, in words."""

    mean: float
    deviation: float
    threshold: float
    source: str

    def facts(self) -> dict[str, Any]:
        """What an exported file says of them."""
        return dict(zip(QUALITY_KEYS, (self.mean, self.deviation, self.threshold, self.source), strict=True))

    def z(self, norm: np.ndarray) -> np.ndarray:
        """Eq. 10, float64."""
        return (np.asarray(norm, np.float64) - self.mean) / self.deviation


def norms_of_info(info: Mapping[str, Any]) -> Norms | None:
    """What a model file carries of its run's norms; None when it carries none, or none that can be used."""
    found = info.get("norms")
    if not isinstance(found, Mapping):
        return None
    return _norms(found.get("mean"), found.get("deviation"), found.get("tau"), found.get("of"))


def norms_of_metadata(said: Mapping[str, str]) -> Norms | None:
    """The same of an exported file's metadata."""
    try:
        mean, deviation, threshold = (json.loads(said[key]) for key in QUALITY_KEYS[:3])
        found = _norms(mean, deviation, -threshold, None)
    except (KeyError, ValueError, TypeError):
        return None
    return found and replace(found, source=said.get(QUALITY_KEYS[3], "the exported file's metadata"))


def norms_of_run(folder: Path) -> Norms | None:
    """The same of a run's newest good checkpoint, for model files from before they carried it; CheckpointError."""
    if not (_may_keep_norms(folder) and checkpoint.saves_in(folder)):
        return None
    saved = checkpoint.open_save(folder, Ranks())
    settings, statistics = saved.state.get("settings", {}), saved.replicated().get("memory.statistics")
    if settings.get("head.inject") != "qaface" or statistics is None or statistics.numel() != 3 or statistics[2] <= 0:
        return None
    mean, deviation, _ = statistics.tolist()
    return _norms(mean, deviation, settings.get("head.inject.tau"), settings.get("head.inject.norm_source"))


def _may_keep_norms(folder: Path) -> bool:
    """False where the run's config.json has another injection: no checkpoint has to be read through for that."""
    try:
        return bool(json.loads((folder / "config.json").read_text())["settings"]["head.inject"] == "qaface")
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _norms(mean: Any, deviation: Any, tau: Any, of: Any) -> Norms | None:
    numbers = (mean, deviation, tau)
    if not all(isinstance(number, float | int) and math.isfinite(number) for number in numbers) or deviation <= 0:
        return None
    whose = of if of in ("momentum", "online") else "momentum"
    return Norms(float(mean), float(deviation), -float(tau), f"training: the {whose} backbone on augmented images")


def measured_norms(embedding: np.ndarray) -> Norms:
    """μ and σ of these raw embeddings' norms [n, d], with the paper's τ; NumericsError when they do not differ."""
    norm = np.linalg.norm(embedding.astype(np.float64), axis=1)
    mean, deviation = float(norm.mean()), float(norm.std())
    if not (math.isfinite(mean) and deviation > 0):
        raise NumericsError(f"quality: the norms of {len(norm)} images have mean {mean:g}, deviation {deviation:g}")
    return Norms(mean, deviation, -QAFace().tau, f"measured at export on {len(norm)} images")
