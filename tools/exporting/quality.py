"""μ and σ of the norms, by which an exported file turns the length of an embedding into a quality.

z = (‖x‖ − μ) / σ (eq. 10 of "A Quality Aware Sample-to-Sample Comparison for Face Recognition", WACV 2023), and an
image with z < −τ is unrecognisable (eq. 11): training by QAFace gives it no weight. A run's own μ and σ are of the
momentum backbone's norms (or the online one's, `norm_source`) on augmented training images; the exported network is the
online one, and how near its norms are is measured in docs/deployment.md. Without them they are measured on images.
Proven by tests/tools/exporting/test_quality_output.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recognition import checkpoint
from recognition.distributed import Ranks
from recognition.errors import NumericsError
from recognition.memory import QAFace


@dataclass(frozen=True)
class Norms:
    """mean, deviation: μ and σ.  threshold: −τ, below is unrecognisable.  source: where they are from, in words."""

    mean: float
    deviation: float
    threshold: float
    source: str

    def z(self, norm: np.ndarray) -> np.ndarray:
        """Eq. 10, float64."""
        return (np.asarray(norm, np.float64) - self.mean) / self.deviation


def norms_of_info(info: Mapping[str, Any]) -> Norms | None:
    """What a model file carries of its run's norms; None when it carries none, or none that can be used."""
    found = info.get("norms")
    if not isinstance(found, Mapping):
        return None
    return _norms(found.get("mean"), found.get("deviation"), found.get("tau"), found.get("of"))


def norms_of_run(folder: Path) -> Norms | None:
    """The same of a run's newest good checkpoint, for model files from before they carried it; CheckpointError."""
    if not checkpoint.saves_in(folder):
        return None
    saved = checkpoint.open_save(folder, Ranks())
    settings, statistics = saved.state.get("settings", {}), saved.replicated().get("memory.statistics")
    if settings.get("head.inject") != "qaface" or statistics is None or statistics.numel() != 3 or statistics[2] <= 0:
        return None
    mean, deviation, _ = statistics.tolist()
    return _norms(mean, deviation, settings.get("head.inject.tau"), settings.get("head.inject.norm_source"))


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
