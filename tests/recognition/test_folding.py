"""A folded network gives what the unfolded one gives, whatever changes the latter; only what may be folded is."""

import pytest
import torch
from torch import nn

from recognition.backbones import BackboneSettings, build
from recognition.folding import Folded, pairs
from recognition.momentum import MomentumBackbone

EXAMPLE = torch.empty(2, 3, 112, 112, device="meta")


def _trained(name: str, norm: str = "batch") -> nn.Module:
    """A backbone whose statistics, scales and shifts are not those of the start."""
    torch.manual_seed(0)
    network = build(BackboneSettings(name, 32, norm=norm))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) * parameter.abs().mean())
        network(torch.randn(4, 3, 112, 112))
    return network


@pytest.mark.parametrize(("name", "norm", "left"), [("tiny", "batch", 7), ("tiny", "group", 0),
                                                    ("mobilefacenet", "batch", 0), ("vit_t", "batch", 0)])
def test_folded_is_unfolded_up_to_rounding(name, norm, left):
    """left: norms that stay, those in front of a padded convolution and the one in front of dropout."""
    online = _trained(name, norm)
    folded, plain = MomentumBackbone(online, 0.5, fold=EXAMPLE), MomentumBackbone(online, 0.5)
    assert sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in folded.network.modules()) == left
    image = torch.randn(2, 3, 112, 112)
    before = folded(image)
    torch.testing.assert_close(before, plain(image), rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.mul_(1.1)
        online(3 * image + 1)
    for momentum in (folded, plain):
        momentum.update(torch.tensor(True))
    after = folded(image)
    assert not torch.allclose(after, before, rtol=1e-3)
    torch.testing.assert_close(after, plain(image), rtol=1e-5, atol=1e-5 * float(after.abs().max()))


def test_the_state_is_the_unfolded_module_and_loading_into_it_counts():
    online = _trained("tiny")
    folded = MomentumBackbone(online, 0.9, fold=EXAMPLE)
    image = torch.randn(2, 3, 112, 112)
    before = folded(image)
    assert folded.module.state_dict().keys() == online.state_dict().keys()
    with torch.no_grad():
        for name, tensor in folded.module.state_dict().items():
            if name.endswith("running_mean"):
                tensor.copy_(tensor + 0.1)
    assert not torch.allclose(folded(image), before, rtol=1e-3)
    torch.testing.assert_close(folded(image), folded.module(image), rtol=1e-4, atol=1e-4)


def test_weights_that_did_not_change_are_not_folded_again():
    folded = Folded(_trained("tiny"), EXAMPLE)
    folded.refresh()
    first = next(fold.filled for fold in folded._folds)
    first.weight.zero_()
    folded.refresh()
    assert not first.weight.any()


class _Awkward(nn.Module):
    """A convolution read twice, one that runs twice, a norm without scale; and one that may be folded."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.twice, self.plain, self.fine = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.after_read, self.after_twice, self.after_fine = (nn.BatchNorm2d(3) for _ in range(3))
        self.no_scale = nn.BatchNorm2d(3, affine=False)

    def forward(self, x):
        y = self.read_twice(x)
        y = self.after_read(y) + y
        y = self.after_twice(self.twice(self.twice(y)))
        return self.after_fine(self.fine(self.no_scale(self.plain(y))))


def test_only_a_norm_that_alone_reads_a_map_that_runs_once_is_folded():
    assert pairs(_Awkward(), torch.empty(2, 3, 8, 8, device="meta")) == [("fine", "after_fine")]
