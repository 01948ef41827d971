"""Every implementation of the gated step against torch's own optimisers, and skipping to the bit."""

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from recognition import optimizer as optimizer_module
from recognition.errors import SettingsError
from recognition.optimizer import BackboneOptimizer, OptimizerSettings


class _ApexSGD(torch.optim.SGD):
    """Stands in for NVIDIA apex's FusedSGD: its arguments, its flag, and that zero_grad takes no argument."""

    def __init__(self, params, lr, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr, momentum, weight_decay=weight_decay, fused=True)
        self._dummy_overflow_buf = torch.tensor([0], dtype=torch.int)

    def step(self):
        assert all("momentum_buffer" in self.state[p] for group in self.param_groups for p in group["params"])
        self.__dict__.update(grad_scale=None, found_inf=self._dummy_overflow_buf[0].float())
        super().step()

    def zero_grad(self):
        raise AssertionError("would set the gradients to None")


class _ApexAdam(torch.optim.Optimizer):
    """Stands in for apex's FusedAdam, capturable: lr and count are tensors, and it counts before it asks the scaler."""

    def __init__(self, params, lr, weight_decay, adam_w_mode, capturable):
        assert adam_w_mode
        assert capturable
        super().__init__(params, {"lr": torch.tensor(lr), "weight_decay": weight_decay, "eps": 1e-8})
        self._dummy_overflow_buf = torch.tensor([0], dtype=torch.int)

    def step(self, grad_scaler):
        (group,) = self.param_groups
        if "step" in group:
            group["step"] += (self._dummy_overflow_buf != 1).to(torch.int)
        else:
            group["step"] = torch.tensor([1], dtype=torch.int)
        device = group["params"][0].device
        self._dummy_overflow_buf.copy_(grad_scaler._check_inf_per_device(self)[device])
        inverse = grad_scaler._get_scale_async().double().reciprocal().float()
        if self._dummy_overflow_buf.item() == 1:
            return
        correction1, correction2 = (1 - beta ** group["step"].double() for beta in (0.9, 0.999))
        for p in group["params"]:
            state, gradient = self.state[p], p.grad * inverse
            m = state["exp_avg"].mul_(0.9).add_(gradient, alpha=0.1)
            v = state["exp_avg_sq"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            update = m / correction1 / ((v / correction2).sqrt() + group["eps"]) + group["weight_decay"] * p.data
            p.data.sub_((group["lr"] * update).float())


@pytest.fixture(params=["auto", "fused", "foreach", "apex", pytest.param("real apex", marks=pytest.mark.gpu)])
def implementation(request, monkeypatch) -> str:
    if request.param == "apex":
        monkeypatch.setattr(optimizer_module, "apex_optimizers", lambda device: (_ApexSGD, _ApexAdam))
    if request.param == "real apex" and importlib.util.find_spec("amp_C") is None:
        pytest.skip("NVIDIA's apex is not installed")
    return request.param.removeprefix("real ")


@pytest.fixture
def device(request) -> torch.device:
    """Of the parameters: apex's kernels have no other than CUDA."""
    return torch.device("cuda" if "real apex" in request.node.name else "cpu")


def _module(device: torch.device | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(device)


def _run(kind: str, clip: float | None, scale: float, implementation: str, device: torch.device) -> tuple[list, list]:
    """Our optimiser and torch's plain one with clip_grad_norm_, on the same gradients, a bad step of ours between."""
    settings = OptimizerSettings(kind, lr=0.1, weight_decay=0.01, clip_norm=clip, implementation=implementation)
    ours, theirs = _module(device), _module(device)
    optimizer = BackboneOptimizer(settings, ours.named_parameters(), scaled=scale != 1)
    optimizer.scale.fill_(scale)
    if kind == "sgd":
        reference = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=0.01, foreach=False)
    else:
        reference = torch.optim.AdamW(theirs.parameters(), 0.1, weight_decay=0.01, foreach=False)
    for step in range(4):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).to(device)
        if step in (0, 2):
            (ours(x).square().sum() * torch.inf).backward()
            optimizer.step(0.1, torch.tensor(False, device=device))
        (ours(x).square().sum() * scale).backward()
        theirs(x).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or torch.inf)
        lr = 0.1 / (1 + step)
        reference.param_groups[0]["lr"] = lr
        reference.step()
        reference.zero_grad()
        assert optimizer.step(lr, torch.tensor(True, device=device))[0].item() == pytest.approx(norm.item(), rel=1e-5)
    return list(ours.parameters()), list(theirs.parameters())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_equals_torch(kind, clip, scale, implementation, device):
    for ours, theirs in zip(*_run(kind, clip, scale, implementation, device), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("cause", ["loss", "gradient"])
@pytest.mark.parametrize("first", [True, False])
def test_skipped_step_changes_nothing_to_the_bit(kind, cause, first, implementation, device):
    module = _module(device)
    settings = OptimizerSettings(kind, implementation=implementation)
    optimizer = BackboneOptimizer(settings, module.named_parameters())
    ones = torch.ones(2, 4, device=device)
    if not first:
        module(ones).sum().backward()
        optimizer.step(0.1, torch.tensor(True, device=device))
    before = {k: v.clone() for k, v in (optimizer.state() | dict(module.named_parameters())).items()}
    module(ones).sum().backward()
    if cause == "gradient":
        next(module.parameters()).grad[0, 0] = torch.inf
    _, taken = optimizer.step(0.1, torch.tensor(cause != "loss", device=device))
    assert not taken
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
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


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_is_taken_up_with_another_implementation(kind, implementation, device):
    """Two steps fused, two with the other, by way of the state as a checkpoint holds it: equal to four fused."""

    def steps(module, optimizer, numbers):
        for number in numbers:
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(number)).to(device)
            module(x).square().sum().backward()
            optimizer.step(0.1, torch.tensor(True, device=device))

    modules = [_module(device) for _ in range(2)]
    first, other = (
        BackboneOptimizer(OptimizerSettings(kind, implementation=name), module.named_parameters())
        for name, module in zip(("fused", implementation), modules, strict=True)
    )
    steps(modules[0], first, (0, 1))
    saved = {name: (value.dtype, value.shape) for name, value in first.state().items()}
    assert {name: (value.dtype, value.shape) for name, value in other.state().items()} == saved
    for name, value in other.state().items():
        value.copy_(first.state()[name])
    modules[1].load_state_dict(modules[0].state_dict())
    steps(modules[0], first, (2, 3))
    steps(modules[1], other, (2, 3))
    for here, there in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)
    for name, value in other.state().items():
        torch.testing.assert_close(value, first.state()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("amp_C") is not None, reason="NVIDIA's apex is installed")
def test_apex_that_is_missing_says_where_to_get_it():
    with pytest.raises(SettingsError, match=r"optimizer\.implementation=apex .*github\.com/NVIDIA/apex.*PyPI"):
        BackboneOptimizer(OptimizerSettings(implementation="apex"), _module().named_parameters())


def test_apex_that_cannot_run_says_so(monkeypatch):
    """The package of the same name on PyPI has no optimisers; NVIDIA's has no kernels for the CPU."""
    monkeypatch.setitem(sys.modules, "amp_C", types.ModuleType("amp_C"))
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    with pytest.raises(SettingsError, match="another project"):
        BackboneOptimizer(OptimizerSettings(implementation="apex"), _module().named_parameters())
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedSGD, optimizers.FusedAdam = _ApexSGD, _ApexAdam
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    with pytest.raises(SettingsError, match="on CUDA only, not on cpu"):
        BackboneOptimizer(OptimizerSettings(implementation="apex"), _module().named_parameters())
