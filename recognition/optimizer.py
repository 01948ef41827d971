"""The backbone's optimiser: fused step, clipping, loss scaling, all decided on the device.

Convention: a step is skipped, not repaired, when the head's loss or the backbone's gradient is not finite: parameters
and their momentum then stay unchanged to the bit, and the host need not look. Loss scaling (fp16 only) multiplies the
embedding gradient before the backward and is taken out here.
Proven by tests/recognition/test_optimizer.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

GROWTH_INTERVAL = 2000
"""Steps without overflow after which the scale doubles; torch.amp.GradScaler's."""


@dataclass(frozen=True)
class OptimizerSettings:
    """How the backbone is learnt. clip_norm: largest norm of its gradient over all parameters; None: no clipping."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float | None = 5.0


class BackboneOptimizer:
    """torch's fused SGD or AdamW with clipping and a loss scale, gated by a flag on the device.

    scale: scalar float32 on the device, 1 unless `scaled` (fp16).
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
        self.torch: torch.optim.Optimizer
        if settings.kind == "sgd":
            self.torch = torch.optim.SGD(
                parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True
            )
        else:
            self.torch = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, fused=True)
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
        for group in self.torch.param_groups:
            group["lr"] = lr
        # The fused kernels skip the update themselves where this flag is set: GradScaler's own mechanism.
        self.torch.__dict__.update(grad_scale=None, found_inf=bad.float())
        self.torch.step()
        # set_to_none=False: with DDP the gradients are views of its buckets.
        self.torch.zero_grad(set_to_none=False)
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
