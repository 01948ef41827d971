"""What the backbones share: the two kinds of normalisation, and the step out of mixed precision before the embedding.

`norm="batch"` is the field's; `norm="group"` keeps every sample's result independent of the others in its batch, so
that a run gives the same numbers on any number of ranks. Proven by tests/recognition/backbones/test_backbones.py.
"""

import contextlib

import torch
from torch import nn

NORMS = ("batch", "group")
GROUP_CHANNELS = 16


def norm_2d(norm: str, channels: int) -> nn.Module:
    """Normalisation of a feature map [b, channels, h, w], scale 1 and shift 0 at the start.

    "group" is GroupNorm (Wu and He 2018, arXiv:1803.08494) with 16 channels a group, or one group of fewer.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(max(1, channels // GROUP_CHANNELS), channels)
    raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")


def norm_1d(norm: str, features: int) -> nn.Module:
    """Normalisation of the embedding [b, features].

    Without batch statistics it is nothing at all: normalising each embedding by itself would give all of them the same
    length, and the length carries the quality of the image.
    """
    if norm == "batch":
        return nn.BatchNorm1d(features)
    if norm == "group":
        return nn.Identity()
    raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")


def full_precision(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Switch autocast off for x's device; no context where it is off already, so that exported graphs stay plain."""
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)
