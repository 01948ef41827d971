"""The margins: frozen dataclasses of settings and pure formulas, and a plain dict of them by name.

Adding one: a dataclass on `Margin` and a line in MARGINS; docs/heads.md shows it on an example.
Proven by tests/recognition/heads/test_margins.py, test_margin_states.py and test_margin_settings.py beside it.
"""

from recognition.heads.margins.adaptive import AdaCos, ElasticFace
from recognition.heads.margins.binary import SphereFace2, UniFace
from recognition.heads.margins.fixed import ArcFace, BroadFace, Combined, CosFace, NormFace, SphereFace, SubCenter
from recognition.heads.margins.margin import SAFE_LOGIT, SINE_FLOOR, Batch, Margin, angle, bounded, sine, target_logit
from recognition.heads.margins.mining import Circle, CurricularFace, MVSoftmax
from recognition.heads.margins.quality import AdaFace, MagFace

MARGINS: dict[str, type[Margin]] = {
    "normface": NormFace,
    "sphereface": SphereFace,
    "cosface": CosFace,
    "arcface": ArcFace,
    "combined": Combined,
    "magface": MagFace,
    "adaface": AdaFace,
    "curricularface": CurricularFace,
    "mvsoftmax": MVSoftmax,
    "adacos": AdaCos,
    "subcenter": SubCenter,
    "circle": Circle,
    "sphereface2": SphereFace2,
    "broadface": BroadFace,
    "elasticface": ElasticFace,
    "uniface": UniFace,
}

__all__ = [
    "MARGINS", "SAFE_LOGIT", "SINE_FLOOR", "AdaCos", "AdaFace", "ArcFace", "Batch", "BroadFace", "Circle", "Combined",
    "CosFace", "CurricularFace", "ElasticFace", "MVSoftmax", "MagFace", "Margin", "NormFace", "SphereFace",
    "SphereFace2", "SubCenter", "UniFace", "angle", "bounded", "sine", "target_logit",
]
