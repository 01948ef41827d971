"""The backbones by name: float images [B, 3, 112, 112] in [-1, 1] -> raw float32 embeddings [B, d], not of unit length.

A backbone is added by one line in BACKBONES: a function of (embedding_size, dropout, norm). Nothing here chooses a
device; `with torch.device(...)` or `.to(...)` of the caller does.
Proven by tests/recognition/backbones/test_backbones.py.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from recognition.backbones.iresnet import DEPTHS, IResNet
from recognition.backbones.mobilefacenet import MobileFaceNet
from recognition.backbones.parts import NORMS
from recognition.backbones.tiny import tiny
from recognition.errors import SettingsError

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "iresnet18": partial(IResNet, DEPTHS[18]),
    "iresnet34": partial(IResNet, DEPTHS[34]),
    "iresnet50": partial(IResNet, DEPTHS[50]),
    "iresnet100": partial(IResNet, DEPTHS[100]),
    "iresnet200": partial(IResNet, DEPTHS[200]),
    "mobilefacenet": MobileFaceNet,
    "tiny": tiny,
}


@dataclass(frozen=True)
class BackboneSettings:
    """Which backbone: a name of BACKBONES, embedding size d, dropout near the end, norm "batch" or "group"."""

    name: str = "iresnet100"
    embedding_size: int = 512
    dropout: float = 0.0
    norm: str = "batch"


def mistakes(settings: BackboneSettings) -> list[str]:
    """Everything that is wrong with the settings, one line each, with the nearest valid names; empty when right."""
    found = []
    if not isinstance(settings.name, str) or settings.name not in BACKBONES:
        nearest = difflib.get_close_matches(str(settings.name), BACKBONES, n=3, cutoff=0.4) or list(BACKBONES)
        found.append(f"backbone.name: no backbone {settings.name!r}; nearest: {', '.join(nearest)}")
    size = settings.embedding_size
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 65536:
        found.append(f"backbone.embedding_size: expected a whole number in 1..65536, got {size!r}")
    dropout = settings.dropout
    if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        found.append(f"backbone.dropout: expected a number in [0, 1), got {dropout!r}")
    if settings.norm not in NORMS:
        found.append(f"backbone.norm: expected one of {', '.join(NORMS)}, got {settings.norm!r}")
    return found


def build(settings: BackboneSettings) -> nn.Module:
    """The backbone in training mode, initialised from torch's default generator, on torch's default device.

    Raises SettingsError with all of `mistakes`.
    """
    if found := mistakes(settings):
        raise SettingsError("; ".join(found))
    return BACKBONES[settings.name](
        embedding_size=settings.embedding_size, dropout=settings.dropout, norm=settings.norm
    )
