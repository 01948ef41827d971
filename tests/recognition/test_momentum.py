"""The momentum backbone: the average of its past, without gradient, unchanged by a step that was not taken."""

import pytest
import torch
from torch import nn

from recognition.momentum import MomentumBackbone, follow


def _online() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.PReLU())


def _move(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    module(torch.randn(8, 4))  # moves the running statistics


def test_parameters_and_statistics_are_averaged_and_counters_copied():
    online = _online()
    momentum = MomentumBackbone(online, decay=0.9)
    expected = {name: value.clone().double() for name, value in online.state_dict().items()}
    for _ in range(4):
        _move(online)
        momentum.update(torch.tensor(True))
        for name, value in online.state_dict().items():
            expected[name] = value.double() if "num_batches" in name else 0.9 * expected[name] + 0.1 * value.double()
    for name, value in momentum.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_step_that_was_not_taken_changes_nothing():
    online = _online()
    momentum = MomentumBackbone(online, decay=0.9)
    _move(online)
    before = {name: value.clone() for name, value in momentum.module.state_dict().items()}
    momentum.update(torch.tensor(False))
    for name, value in momentum.module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("mode", ["average", "train"])
def test_normalises_by_its_statistics_or_by_the_batch(mode):
    online = _online()
    momentum = MomentumBackbone(online, 0.9, mode)
    x = torch.randn(6, 4) * 5 + 3
    embedding = momentum(x)
    assert not embedding.requires_grad
    online.train(mode == "train")
    torch.testing.assert_close(embedding, online(x).detach())
    online.train()
    one_more = momentum(torch.cat([x, 100 + x]))[:6]
    assert torch.allclose(one_more, embedding) == (mode == "average")


def test_following_asks_the_device_nothing_and_is_what_the_processor_does():
    """On the meta device a tensor has no value: reading one raises."""
    mine, online = ([torch.randn(5, 3), torch.randn(7)] for _ in range(2))
    expected = [tensor.clone() for tensor in mine]
    torch._foreach_lerp_(expected, online, 0.01)
    follow(mine, online, torch.tensor(0.01))
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
    follow([torch.empty(3, device="meta")], [torch.empty(3, device="meta")], torch.empty((), device="meta"))


def test_what_only_training_has_stays_off_when_the_batch_normalises():
    """batch_norm="train" means the norms: dropout would make two embeddings of one image."""
    online = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    momentum = MomentumBackbone(online, 0.9, "train")
    x = torch.randn(6, 4)
    assert torch.equal(momentum(x), momentum(x))
