"""The gated fused step against torch's own optimisers, and skipping to the bit."""

import pytest
import torch
from torch import nn

from recognition.optimizer import BackboneOptimizer, OptimizerSettings


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def _run(kind: str, clip: float | None, scale: float, steps: int = 4) -> tuple[list, list]:
    """Our optimiser and torch's unfused one with clip_grad_norm_, on the same gradients."""
    settings = OptimizerSettings(kind, lr=0.1, weight_decay=0.01, clip_norm=clip)
    ours, theirs = _module(), _module()
    optimizer = BackboneOptimizer(settings, ours.named_parameters(), scaled=scale != 1)
    optimizer.scale.fill_(scale)
    if kind == "sgd":
        reference = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=0.01)
    else:
        reference = torch.optim.AdamW(theirs.parameters(), 0.1, weight_decay=0.01)
    for step in range(steps):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        (ours(x).square().sum() * scale).backward()
        theirs(x).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or torch.inf)
        reference.step()
        reference.zero_grad()
        assert optimizer.step(0.1, torch.tensor(True))[0].item() == pytest.approx(norm.item(), rel=1e-5)
    return list(ours.parameters()), list(theirs.parameters())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_equals_torch(kind, clip, scale):
    for ours, theirs in zip(*_run(kind, clip, scale), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("cause", ["loss", "gradient"])
@pytest.mark.parametrize("first", [True, False])
def test_skipped_step_changes_nothing_to_the_bit(kind, cause, first):
    module = _module()
    optimizer = BackboneOptimizer(OptimizerSettings(kind), module.named_parameters())
    if not first:
        module(torch.ones(2, 4)).sum().backward()
        optimizer.step(0.1, torch.tensor(True))
    before = {k: v.clone() for k, v in (optimizer.state() | dict(module.named_parameters())).items()}
    module(torch.ones(2, 4)).sum().backward()
    if cause == "gradient":
        next(module.parameters()).grad[0, 0] = torch.inf
    optimizer.step(0.1, torch.tensor(cause != "loss"))
    for name, value in (optimizer.state() | dict(module.named_parameters())).items():
        assert torch.equal(value, before[name]), name


def test_scale_halves_on_overflow_of_the_backward_only():
    module = _module()
    optimizer = BackboneOptimizer(OptimizerSettings(), module.named_parameters(), scaled=True)
    scale = optimizer.scale.item()
    (module(torch.ones(2, 4)).sum() * torch.inf).backward()
    optimizer.step(0.1, torch.tensor(False))
    assert optimizer.scale.item() == scale
    assert optimizer.good_steps.item() == 0
    (module(torch.ones(2, 4)).sum() * torch.inf).backward()
    optimizer.step(0.1, torch.tensor(True))
    assert optimizer.scale.item() == scale / 2
