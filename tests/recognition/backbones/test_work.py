"""What backbones compute, by hand on a small module and as published for whole ones."""

import pytest
import torch
from torch import nn

from recognition.backbones import BackboneSettings
from recognition.backbones.vit import Attention
from recognition.backbones.work import count, multiply_accumulates


def test_multiply_accumulates_by_hand():
    """A convolution with groups and stride, a linear map, and attention: 2·n²·w beside its linear maps."""
    with torch.device("meta"):
        module = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3), nn.Flatten(), nn.Unflatten(1, (49, 384)),
            Attention(384, 2), nn.Flatten(), nn.Linear(49 * 384, 5),
        )
    by_hand = 6 * 56 * 56 * 9 + 49 * 384 * 4 * 384 + 2 * 49 * 49 * 384 + 49 * 384 * 5
    assert count(module) == by_hand


@pytest.mark.parametrize(("name", "giga"), [("iresnet18", 2.61), ("iresnet50", 6.31), ("mobilefacenet", 0.434)])
def test_operations_are_those_of_the_published_networks(name, giga):
    """The floors of docs/performance.md follow from these."""
    assert multiply_accumulates(BackboneSettings(name)) == pytest.approx(giga * 1e9, rel=0.01)
