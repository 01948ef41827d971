"""How much a backbone computes, counted on the meta device: no weights, no pictures, no time measured.

Counted are the products of convolutions, linear maps and attention; norms, activations and sums do not count.
Proven by tests/recognition/backbones/test_work.py.
"""

import torch
from torch import Tensor, nn

from recognition.backbones import BackboneSettings, build
from recognition.backbones.vit import IMAGE_SIDE, Attention


def multiply_accumulates(settings: BackboneSettings) -> int:
    """Multiplications with an addition of one image's forward through a backbone."""
    with torch.device("meta"):
        return count(build(settings).eval())


def count(module: nn.Module) -> int:
    """Those of one image [1, 3, 112, 112] through a module on the meta device, in eval mode."""
    total = 0

    def add(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d | nn.Linear):
            total += output.numel() * layer.weight[0].numel()
        else:  # attention's q·kᵀ and ·v
            total += output.numel() * 2 * output.shape[1]

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | Attention):
            layer.register_forward_hook(add)
    with torch.no_grad():
        module(torch.empty(1, 3, IMAGE_SIDE, IMAGE_SIDE, device="meta"))
    return total
