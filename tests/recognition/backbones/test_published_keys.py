"""State-dict keys and shapes are those of the published weights, so that files go both ways for good.

The digests were taken of the reference trainer's own networks (arcface_torch's r18 … r200, mbf, mbf_large, vit_t,
vit_s, vit_b and vit_l, 512 numbers), after state dicts had been exchanged in both directions with strict loading and
the outputs of both were the same.
"""

import hashlib

import pytest
import torch

from recognition.backbones import BACKBONES, BackboneSettings, build

# Entries of the state dict, parameters, and the SHA-256 of its sorted lines "key [shape]", the first 16 digits.
PUBLISHED = {
    "iresnet18": (187, 24_025_600, "68eaf02af455cf33"),
    "iresnet34": (331, 34_139_328, "f184bfe8178b94e8"),
    "iresnet50": (475, 43_590_848, "87577a0a9c1c1505"),
    "iresnet100": (925, 65_156_160, "30c5c94b2426b414"),
    "iresnet200": (1807, 118_833_920, "99ee48c6fb84881f"),
    "mobilefacenet": (333, 2_059_520, "83ce66f2a8d96e25"),
    "mobilefacenet_large": (606, 6_314_880, "e8ba8ded5aa610fc"),
    "vit_t": (150, 19_137_792, "6e9807688ae1dd4b"),
    "vit_s": (150, 76_023_296, "9cd3bd9f20c3d65b"),
    "vit_b": (282, 113_833_472, "e3d238d5b1e2426f"),
    "vit_l": (282, 255_684_352, "f77efc74b308a01b"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes(name):
    with torch.device("meta"):
        module = build(BackboneSettings(name))
    lines = sorted(f"{key} {list(tensor.shape)}" for key, tensor in module.state_dict().items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (len(lines), sum(weight.numel() for weight in module.parameters()), digest) == PUBLISHED[name]


def test_every_backbone_but_our_own_is_held():
    assert BACKBONES.keys() - PUBLISHED.keys() == {"tiny"}
