"""The backbones by name: float images [B, 3, 112, 112] in [-1, 1] -> raw float32 embeddings [B, d], not of unit length.

A backbone is added by one line in BACKBONES: a function of embedding_size, dropout, and those of OPTIONS that mean
something to it. Nothing here chooses a device; `with torch.device(...)` or `.to(...)` of the caller does.
Proven by tests/recognition/backbones/test_backbones.py.
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from recognition.backbones.iresnet import DEPTHS, IResNet
from recognition.backbones.mobilefacenet import LARGE_BLOCKS, MobileFaceNet
from recognition.backbones.parts import NORMS
from recognition.backbones.tiny import tiny
from recognition.backbones.vit import VisionTransformer
from recognition.errors import SettingsError

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "iresnet18": partial(IResNet, DEPTHS[18]),
    "iresnet34": partial(IResNet, DEPTHS[34]),
    "iresnet50": partial(IResNet, DEPTHS[50]),
    "iresnet100": partial(IResNet, DEPTHS[100]),
    "iresnet200": partial(IResNet, DEPTHS[200]),
    "mobilefacenet": MobileFaceNet,
    "mobilefacenet_large": partial(MobileFaceNet, blocks=LARGE_BLOCKS, scale=4),
    "tiny": tiny,
    "vit_t": partial(VisionTransformer, 256, 12),
    "vit_s": partial(VisionTransformer, 512, 12),
    "vit_b": partial(VisionTransformer, 512, 24),
    "vit_l": partial(VisionTransformer, 768, 24),
}

OPTIONS = {
    "norm": "its tokens have LayerNorm, its head BatchNorm, and no part is in groups",
    "drop_path": "it leaves out no branches",
    "mask": "it has no tokens to hide",
    "checkpointing": "it cannot compute its blocks anew",
}
"""Settings that not every backbone has, and why one that has not cannot take another value than the default."""

MOST_HIDDEN = 0.9


@dataclass(frozen=True)
class BackboneSettings:
    """Which backbone: a name of BACKBONES, embedding size d, dropout near the end, norm "batch" or "group".

    drop_path, mask: of vision transformers, in training. drop_path: the rate at which the last block's branches are
    left out, rising to it from 0 in the first.  mask: share of the tokens that skip the blocks.
    checkpointing: blocks' activations are computed a second time in the backward instead of being kept.
    """

    name: str = "iresnet100"
    embedding_size: int = 512
    dropout: float = 0.0
    norm: str = "batch"
    drop_path: float = 0.0
    mask: float = 0.0
    checkpointing: bool = False


def mistakes(settings: BackboneSettings) -> list[str]:
    """Everything that is wrong with the settings, one line each, with the nearest valid names; empty when right."""
    found = []
    if not isinstance(settings.name, str) or settings.name not in BACKBONES:
        nearest = difflib.get_close_matches(str(settings.name), BACKBONES, n=3, cutoff=0.4) or list(BACKBONES)
        found.append(f"backbone.name: no backbone {settings.name!r}; nearest: {', '.join(nearest)}")
    size = settings.embedding_size
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 65536:
        found.append(f"backbone.embedding_size: expected a whole number in 1..65536, got {size!r}")
    numbers = (("dropout", settings.dropout, 1), ("drop_path", settings.drop_path, 1))
    for name, value, bound in numbers:
        if not _is_number(value) or not 0 <= value < bound:
            found.append(f"backbone.{name}: expected a number in [0, {bound}), got {value!r}")
    if not _is_number(settings.mask) or not 0 <= settings.mask <= MOST_HIDDEN:
        found.append(f"backbone.mask: expected a number in [0, {MOST_HIDDEN}], got {settings.mask!r}")
    if settings.norm not in NORMS:
        found.append(f"backbone.norm: expected one of {', '.join(NORMS)}, got {settings.norm!r}")
    if not isinstance(settings.checkpointing, bool):
        found.append(f"backbone.checkpointing: expected true or false, got {settings.checkpointing!r}")
    return found or [
        f"backbone.{option}: not with {settings.name}: {why}; expected {getattr(BackboneSettings, option)!r}, "
        f"got {getattr(settings, option)!r}"
        for option, why in OPTIONS.items()
        if option not in _takes(settings.name) and getattr(settings, option) != getattr(BackboneSettings, option)
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _takes(name: str) -> set[str]:
    """The options that the backbone has: its function's parameters."""
    return OPTIONS.keys() & inspect.signature(BACKBONES[name]).parameters.keys()


def same_weights(one: BackboneSettings, other: BackboneSettings) -> bool:
    """Whether weights of the one fit the other: they differ at most in what has no weights."""
    bare = [replace(each, dropout=0.0, drop_path=0.0, mask=0.0, checkpointing=False) for each in (one, other)]
    return bare[0] == bare[1]


def build(settings: BackboneSettings) -> nn.Module:
    """The backbone in training mode, initialised from torch's default generator, on torch's default device.

    Raises SettingsError with all of `mistakes`.
    """
    if found := mistakes(settings):
        raise SettingsError("; ".join(found))
    options = {option: getattr(settings, option) for option in _takes(settings.name)}
    return BACKBONES[settings.name](embedding_size=settings.embedding_size, dropout=settings.dropout, **options)
