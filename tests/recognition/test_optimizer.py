"""Every implementation of the gated step against torch's own optimisers, and skipping to the bit."""

import dataclasses
import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from recognition import optimizer as optimizer_module
from recognition.backbones import BackboneSettings, build
from recognition.backbones.vit import VisionTransformer
from recognition.errors import SettingsError
from recognition.optimizer import BackboneOptimizer, OptimizerSettings, groups


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

    def __init__(self, params, lr, betas, eps, adam_w_mode, capturable):
        assert adam_w_mode
        assert capturable
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "betas": betas, "eps": eps})
        for group in self.param_groups:
            group["lr"] = torch.tensor(lr)
        self._dummy_overflow_buf = torch.tensor([0], dtype=torch.int)

    def step(self, grad_scaler):
        for group in self.param_groups:
            self._step_group(group, grad_scaler)

    def _step_group(self, group, grad_scaler):
        if "step" in group:
            group["step"] += (self._dummy_overflow_buf != 1).to(torch.int)
        else:
            group["step"] = torch.tensor([1], dtype=torch.int)
        device = group["params"][0].device
        self._dummy_overflow_buf.copy_(grad_scaler._check_inf_per_device(self)[device])
        inverse = grad_scaler._get_scale_async().double().reciprocal().float()
        if self._dummy_overflow_buf.item() == 1:
            return
        beta1, beta2 = group["betas"]
        correction1, correction2 = (1 - beta ** group["step"].double() for beta in group["betas"])
        for p in group["params"]:
            state, gradient = self.state[p], p.grad * inverse
            m = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
            v = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
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


def _reference(settings: OptimizerSettings, module: nn.Module) -> torch.optim.Optimizer:
    """torch's plain optimiser; without `decay_norms`, biases in a group of their own that does not decay."""
    decay = settings.weight_decay
    biases = [p for name, p in module.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in module.named_parameters() if name.endswith("weight")]
    parameters = [{"params": weights}, {"params": biases, "weight_decay": decay if settings.decay_norms else 0}]
    if settings.kind == "sgd":
        return torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=decay, foreach=False)
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(parameters, 0.1, betas, settings.epsilon, weight_decay=decay, foreach=False)


def _run(settings: OptimizerSettings, scale: float, device: torch.device) -> tuple[list, list]:
    """Our optimiser and torch's plain one with clip_grad_norm_, on the same gradients, a bad step of ours between."""
    ours, theirs = _module(device), _module(device)
    optimizer = BackboneOptimizer(settings, ours.named_parameters(), scaled=scale != 1)
    optimizer.scale.fill_(scale)
    reference = _reference(settings, theirs)
    for step in range(4):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).to(device)
        if step in (0, 2):
            (ours(x).square().sum() * torch.inf).backward()
            optimizer.step(0.1, torch.tensor(False, device=device))
        (ours(x).square().sum() * scale).backward()
        theirs(x).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), settings.clip_norm or torch.inf)
        lr = 0.1 / (1 + step)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        reference.zero_grad()
        assert optimizer.step(lr, torch.tensor(True, device=device))[0].item() == pytest.approx(norm.item(), rel=1e-5)
    return list(ours.parameters()), list(theirs.parameters())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_equals_torch(kind, clip, scale, implementation, device):
    settings = OptimizerSettings(kind, lr=0.1, weight_decay=0.01, clip_norm=clip, implementation=implementation)
    for ours, theirs in zip(*_run(settings, scale, device), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changed", [
    {"kind": "sgd", "decay_norms": False}, {"kind": "adamw", "decay_norms": False},
    {"kind": "adamw", "beta1": 0.5}, {"kind": "adamw", "beta2": 0.9}, {"kind": "adamw", "epsilon": 0.01},
])
def test_each_setting_is_torchs(changed, implementation, device):
    """And acts: the same setting left at its default ends elsewhere."""
    base = OptimizerSettings(lr=0.1, weight_decay=0.1, implementation=implementation)
    changed_parameters, theirs = _run(dataclasses.replace(base, **changed), 1.0, device)
    plain_parameters, _ = _run(dataclasses.replace(base, kind=changed["kind"]), 1.0, device)
    for ours, expected in zip(changed_parameters, theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(changed_parameters[1], plain_parameters[1], rtol=1e-3, atol=1e-4)


def test_what_scales_shifts_or_places_does_not_decay():
    """Of a vision transformer and of an IResNet: all but the weights of linear maps and convolutions."""
    for module in (VisionTransformer(16, 1, 8, mask=0.1), build(BackboneSettings("tiny", 8))):
        named = dict(module.named_parameters())
        decaying, others = groups(OptimizerSettings(weight_decay=0.3, decay_norms=False), named)
        assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0)
        found = {id(p) for p in decaying["params"]}
        maps = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert found == {id(m.weight) for m in maps}
        assert len(decaying["params"]) + len(others["params"]) == len(named)
        (everything,) = groups(OptimizerSettings(weight_decay=0.3), named)
        assert everything == {"params": [*named.values()], "weight_decay": 0.3}


def test_a_run_goes_on_with_norms_in_a_group_of_their_own():
    """The state goes by the parameters' names, not by their groups."""
    states = [
        BackboneOptimizer(OptimizerSettings("adamw", decay_norms=decay), _module().named_parameters()).state()
        for decay in (True, False)
    ]
    assert list(states[0]) == list(states[1])


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
