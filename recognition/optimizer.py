"""The backbone's optimiser: fused step, clipping, loss scaling, all decided on the device.

Convention: a step is skipped, not repaired, when the head's loss or the backbone's gradient is not finite: parameters
and their momentum then stay unchanged to the bit, and the host need not look. Loss scaling (fp16 only) multiplies the
embedding gradient before the backward and is taken out here. Whoever implements the update, the state has the same
names, types and values, so that a run can be taken up with another implementation.
Proven by tests/recognition/test_optimizer.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recognition.errors import SettingsError

GROWTH_INTERVAL = 2000
"""Steps without overflow after which the scale doubles; torch.amp.GradScaler's."""


@dataclass(frozen=True)
class OptimizerSettings:
    """How the backbone is learnt.

    momentum: of sgd.  beta1, beta2, epsilon: of adamw, whose weight_decay is decoupled: w ← w − lr·weight_decay·w.
    decay_norms: False: weight_decay leaves out what scales or shifts (norms, biases, PReLU slopes) and a vision
    transformer's positions and mask token; True: it falls on everything, as in the published recipes.
    clip_norm: largest norm of its gradient over all parameters; None: no clipping.
    implementation: who computes the update. fused: torch's fused kernels, one pass over memory and gated by themselves;
    auto: fused. foreach: torch's plain operations, at the price of a copy of parameters and state in each step.
    apex: NVIDIA apex's FusedSGD or FusedAdam, on CUDA, where it has been built from source.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 5e-4
    decay_norms: bool = True
    clip_norm: float | None = 5.0
    implementation: Literal["auto", "fused", "foreach", "apex"] = "auto"


Groups = list[dict[str, Any]]
"""Parameters that share settings, in torch's form: [{"params": […], "weight_decay": …}, …]."""

BARE = ("pos_embed", "mask_token")
"""Last parts of the names of parameters that add to tokens, as a bias does, though they have more than one axis."""


def groups(settings: OptimizerSettings, named: Mapping[str, nn.Parameter]) -> Groups:
    """One group of all parameters; or, without `decay_norms`, those that decay and, with a weight_decay of 0, others.

    A parameter decays when it has more than one axis and is not BARE: the weights of linear maps and convolutions.
    """
    if settings.decay_norms:
        return [{"params": list(named.values()), "weight_decay": settings.weight_decay}]
    maps = {name for name, p in named.items() if p.ndim > 1 and name.rpartition(".")[2] not in BARE}
    both = [
        {"params": [p for name, p in named.items() if name in maps], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in named.items() if name not in maps], "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


class FusedUpdate:
    """torch's fused kernels, which skip the update themselves where a flag is set: GradScaler's own mechanism."""

    def __init__(self, settings: OptimizerSettings, parameters: Groups) -> None:
        self.torch = _torch_optimizer(settings, parameters, fused=True)

    def step(self, lr: float, bad: Tensor) -> None:
        """Update the parameters from their gradients; nothing changes where `bad` (boolean scalar) is set."""
        _set_lr(self.torch, lr)
        self.torch.__dict__.update(grad_scale=None, found_inf=bad.float())
        self.torch.step()


class ForeachUpdate:
    """torch's plain operations on lists of tensors. They know no gate: what was is kept and put back."""

    def __init__(self, settings: OptimizerSettings, parameters: Groups) -> None:
        # capturable: AdamW's step counts stay on the device, else the host would read each of them in each step.
        on_device = {"capturable": parameters[0]["params"][0].is_cuda} if settings.kind == "adamw" else {}
        self.torch = _torch_optimizer(settings, parameters, foreach=True, **on_device)

    def step(self, lr: float, bad: Tensor) -> None:
        """See `FusedUpdate.step`."""
        _set_lr(self.torch, lr)
        parameters = [p for group in self.torch.param_groups for p in group["params"]]
        tensors = parameters + [value for p in parameters for value in self.torch.state[p].values()]
        before = [tensor.clone() for tensor in tensors]
        self.torch.step()
        for tensor, old in zip(tensors, before, strict=True):
            torch.where(bad, old, tensor, out=tensor)


class ApexUpdate:
    """NVIDIA apex's FusedSGD and FusedAdam, which skip the update where `_dummy_overflow_buf` holds 1.

    FusedAdam counts steps in its parameter groups, for all parameters alike; the state's counts, as torch's, are the
    ones that hold. It asks a gradient scaler for the flag and the scale: this object is one.
    """

    def __init__(self, settings: OptimizerSettings, parameters: Groups) -> None:
        device = parameters[0]["params"][0].device
        sgd, adam = apex_optimizers(device)
        self.is_adam = settings.kind == "adamw"
        if not self.is_adam:
            self.torch = sgd(parameters, settings.lr, settings.momentum)
            return
        betas = (settings.beta1, settings.beta2)
        self.torch = adam(
            parameters, settings.lr, betas=betas, eps=settings.epsilon, adam_w_mode=True, capturable=True
        )
        for group in self.torch.param_groups:
            group["step"] = torch.zeros(1, dtype=torch.int32, device=device)

    def step(self, lr: float, bad: Tensor) -> None:
        """See `FusedUpdate.step`."""
        self.bad = bad
        self.torch._dummy_overflow_buf.copy_(bad)  # before the step too: FusedAdam counts by it before it asks
        if not self.is_adam:
            _set_lr(self.torch, lr)
            self.torch.step()
            return
        counts = [self.torch.state[p]["step"] for group in self.torch.param_groups for p in group["params"]]
        for group in self.torch.param_groups:
            group["lr"].fill_(lr)
            group["step"].copy_(counts[0])
        self.torch.step(grad_scaler=self)
        torch._foreach_add_(counts, (~bad).float())

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[torch.device, Tensor]:
        return {self.bad.device: self.bad.float()}

    def _get_scale_async(self) -> Tensor:
        return torch.ones(1, device=self.bad.device)


UPDATES: dict[str, Any] = {
    "auto": FusedUpdate, "fused": FusedUpdate, "foreach": ForeachUpdate, "apex": ApexUpdate,
}


def apex_optimizers(device: torch.device) -> tuple[Any, Any]:
    """NVIDIA apex's FusedSGD and FusedAdam. Raises SettingsError where they are missing or cannot run."""
    try:
        import_module("amp_C")  # its kernels: a build without them has the classes all the same
        from apex.optimizers import FusedAdam, FusedSGD
    except ImportError as error:
        raise SettingsError(
            "optimizer.implementation=apex needs NVIDIA's apex with its CUDA kernels: git clone "
            "https://github.com/NVIDIA/apex, then in it APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install "
            "--no-build-isolation . (the package apex on PyPI is another project); or choose auto"
        ) from error
    if device.type != "cuda":
        raise SettingsError(f"optimizer.implementation=apex runs on CUDA only, not on {device.type}: choose auto")
    return FusedSGD, FusedAdam


def _torch_optimizer(settings: OptimizerSettings, parameters: Groups, **options: Any) -> Any:
    if settings.kind == "sgd":
        return torch.optim.SGD(parameters, settings.lr, settings.momentum, **options)
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(parameters, settings.lr, betas=betas, eps=settings.epsilon, **options)


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class BackboneOptimizer:
    """SGD or AdamW with clipping and a loss scale, gated by a flag on the device.

    scale: scalar float32 on the device, 1 unless `scaled` (fp16).
    Raises SettingsError when apex is asked for where it cannot run.
    """

    def __init__(
        self, settings: OptimizerSettings, named: Iterable[tuple[str, nn.Parameter]], scaled: bool = False
    ) -> None:
        self.settings = settings
        self.named = {name: parameter for name, parameter in named if parameter.requires_grad}
        parameters = list(self.named.values())
        self.scaled = scaled
        device = parameters[0].device
        self.scale = torch.tensor(65536.0 if scaled else 1.0, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)
        self.update = UPDATES[settings.implementation](settings, groups(settings, self.named))
        self.torch = self.update.torch
        self._fill_state(parameters)

    def _fill_state(self, parameters: list[nn.Parameter]) -> None:
        """Make the state before the first step: a first step that is skipped would leave it uninitialised."""
        for parameter in parameters:
            zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            if self.settings.kind == "sgd":
                self.torch.state[parameter]["momentum_buffer"] = zeros
            else:
                count = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.torch.state[parameter].update(step=count, exp_avg=zeros, exp_avg_sq=zeros.clone())

    @torch.no_grad()
    def step(self, lr: float, finite: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step with the gradients present and clear them.

        finite: boolean scalar on the device. False, or a gradient that is not finite, changes no parameter.
        Returns the gradient's norm (scalar, unscaled) and whether the step was taken (boolean scalar).
        """
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) / self.scale
        bad = ~(finite & torch.isfinite(norm))
        share = 1 / self.scale
        if self.settings.clip_norm is not None:
            share = share * (self.settings.clip_norm / norm.clamp_min(1e-6)).clamp(max=1.0)
        if self.scaled or self.settings.clip_norm is not None:
            torch._foreach_mul_(gradients, share)
        self.update.step(lr, bad)
        torch._foreach_zero_(gradients)  # and not to None: with DDP they are views of its buckets
        if self.scaled:
            # An unusable loss says nothing about the scale: only an overflow of the backward halves it.
            scale, good_steps = self.scale.clone(), self.good_steps.clone()
            torch._amp_update_scale_(scale, good_steps, bad.float(), 2.0, 0.5, GROWTH_INTERVAL)
            torch.where(finite, scale, self.scale, out=self.scale)
            torch.where(finite, good_steps, self.good_steps, out=self.good_steps)
        return norm, ~bad

    def state(self) -> dict[str, Tensor]:
        """All tensors of the state by name, for a checkpoint; load by copying into them."""
        tensors = {
            f"{name}.{key}": value
            for name, parameter in self.named.items()
            for key, value in self.torch.state[parameter].items()
        }
        return tensors | {"scale": self.scale, "good_steps": self.good_steps}
