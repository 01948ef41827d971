"""Whether a model would call a picture unrecognisable: the z-score of its embedding's norm, by the model's own μ, σ, τ.

z = (‖x‖ − μ)/σ of the raw embedding of the image alone, without its mirror (eq. 10 of "A Quality Aware
Sample-to-Sample Comparison for Face Recognition", WACV 2023); below the threshold a picture had no weight when the
model was trained (eq. 11). An ONNX file's metadata carry the three numbers as `quality_mean`, `quality_std` and
`quality_threshold`, the last of them a z (−τ); a model file's info so, too, or as `norms`: mean, deviation, tau. A
graph may give z itself, as its output `quality`: the only way where its embeddings have unit length.
Proven by tests/eval/test_norm_quality.py.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recognition.errors import CheckpointError

KEYS = ("quality_mean", "quality_std", "quality_threshold")
UNIT = "unit length"  # what the metadata of a graph that divides by the norm say of its embedding


@dataclass(frozen=True)
class NormQuality:
    """A model's measure of quality: μ and σ of the norms in its training, and the lowest z that is recognisable."""

    mean: float
    std: float
    threshold: float

    def z(self, norm: np.ndarray) -> np.ndarray:
        """The quality of images from the norms of their embeddings, float32 of the same shape."""
        return ((np.asarray(norm, np.float64) - self.mean) / self.std).astype(np.float32)

    def recognizable(self, z: np.ndarray) -> np.ndarray:
        """Which of the images of these qualities are, bool of the same shape."""
        return np.asarray(z) >= self.threshold


def quality_in(info: Mapping[str, Any], name: str, has_output: bool = False) -> NormQuality | None:
    """The measure that a model file's info or an ONNX file's metadata (numbers as text) carries; None without one.

    None also of a graph whose embeddings have unit length, as their norm says nothing, unless `has_output`: it gives z.
    name: of the file. CheckpointError when some of the three numbers are missing, or none that can be used.
    """
    if isinstance(norms := info.get("norms"), Mapping) and not any(key in info for key in KEYS):
        with contextlib.suppress(KeyError, TypeError):
            info = dict(zip(KEYS, (norms["mean"], norms["deviation"], -norms["tau"]), strict=True))
    if not any(key in info for key in KEYS) or (info.get("embedding") == UNIT and not has_output):
        return None
    try:
        mean, std, threshold = (float(json.loads(value) if isinstance(value := info[key], str) else value)
                                for key in KEYS)
    except (KeyError, ValueError, TypeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{name}: its quality: {reason}") from None
    if not all(map(math.isfinite, (mean, std, threshold))) or std <= 0:
        raise CheckpointError(f"{name}: its quality: mean {mean:g}, std {std:g}, threshold {threshold:g}")
    return NormQuality(mean, std, threshold)


def judged(embedding: np.ndarray, quality: NormQuality | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Raw embeddings [N, d] and the z of their norms, float32 [N], where there is a measure."""
    return embedding, None if quality is None else quality.z(np.linalg.norm(embedding, axis=1))
