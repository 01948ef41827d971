"""The margins: pure functions from the target's cosine to its logit, one settings dataclass each, a plain dict below.

Convention: `c` [n] float32 is the cosine between a unit embedding and the unit centre of its own class, in [−1, 1];
θ = arccos c. The negatives' logit is s·c_j for every margin here. A margin touches only the target, so it is
evaluated where the target's class lives, and its derivative is taken from the formula itself by autograd over those
n numbers. `sine` and `angle` bound their derivative near |c| = 1, where that of the mathematics is infinite.

Adding a margin: a dataclass with `s`, a function, one line in MARGINS.
Proven by tests/recognition/heads/test_margins.py (values against the formulas in float64, derivatives against
differences).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SINE_FLOOR = 1e-3
"""Smallest sin θ that a derivative divides by: |dθ/dc| stays ≤ 1000."""


@dataclass(frozen=True)
class Margin:
    """What all margins share: the scale s of the logits, and how the target's gradient is formed.

    `straight_through` passes the target's gradient through unchanged (slope s), as implementations do that modify
    logits in place without recording it. The default is the true derivative.
    """

    s: float = 64.0
    straight_through: bool = False


@dataclass(frozen=True)
class NormFace(Margin):
    """Normalised softmax without a margin. Wang et al., NormFace, 2017."""


@dataclass(frozen=True)
class ArcFace(Margin):
    """Additive angular margin `m` in radians. Deng et al., ArcFace, 2019."""

    m: float = 0.5


@dataclass(frozen=True)
class CosFace(Margin):
    """Additive cosine margin `m`. Wang et al., CosFace, 2018."""

    m: float = 0.4


@dataclass(frozen=True)
class Combined(Margin):
    """All three margins at once: cos(m1·θ + m2) − m3. Deng et al., ArcFace, 2019, eq. 4."""

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        sine = ((1 - c) * (1 + c)).clamp_min(0).sqrt()
        ctx.save_for_backward(c, sine)
        return sine

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        c, sine = ctx.saved_tensors
        return gradients[0] * -c / sine.clamp_min(SINE_FLOOR)


class _Angle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        sine = ((1 - c) * (1 + c)).clamp_min(0).sqrt()
        ctx.save_for_backward(sine)
        return torch.atan2(sine, c)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (sine,) = ctx.saved_tensors
        return -gradients[0] / sine.clamp_min(SINE_FLOOR)


def sine(c: Tensor) -> Tensor:
    """Sin θ = √(1 − c²); its derivative −c / sin θ is bounded by 1 / SINE_FLOOR."""
    return _Sine.apply(c)


def angle(c: Tensor) -> Tensor:
    """θ = arccos c, accurate near |c| = 1 as well; its derivative −1 / sin θ is bounded by 1 / SINE_FLOOR."""
    return _Angle.apply(c)


def normface(c: Tensor, margin: NormFace) -> Tensor:
    """Target logit s·c."""
    return margin.s * c


def arcface(c: Tensor, margin: ArcFace) -> Tensor:
    """Target logit s·cos(θ + m); past θ = π − m, where that turns back, s·(c − m·sin m)."""
    shifted = c * math.cos(margin.m) - sine(c) * math.sin(margin.m)
    return margin.s * torch.where(c > math.cos(math.pi - margin.m), shifted, c - margin.m * math.sin(margin.m))


def cosface(c: Tensor, margin: CosFace) -> Tensor:
    """Target logit s·(c − m)."""
    return margin.s * (c - margin.m)


def combined(c: Tensor, margin: Combined) -> Tensor:
    """Target logit s·(cos(m1·θ + m2) − m3), kept falling past m1·θ + m2 = π.

    There, with m1 = 1, ArcFace's continuation c − m2·sin m2; otherwise SphereFace's (−1)^k cos φ − 2k with
    φ = m1·θ + m2 and k = ⌊φ/π⌋ (Liu et al., SphereFace, 2017, eq. 7).
    """
    if margin.m1 == 1.0:
        unscaled = arcface(c, ArcFace(s=1.0, m=margin.m2))
    else:
        phase = margin.m1 * angle(c) + margin.m2
        k = torch.floor(phase.detach() / math.pi)
        unscaled = (1 - 2 * (k % 2)) * torch.cos(phase) - 2 * k
    return margin.s * (unscaled - margin.m3)


MARGINS: dict[str, tuple[type[Margin], Callable[[Tensor, Any], Tensor]]] = {
    "normface": (NormFace, normface),
    "arcface": (ArcFace, arcface),
    "cosface": (CosFace, cosface),
    "combined": (Combined, combined),
}


def target_logit(c: Tensor, margin: Margin) -> tuple[Tensor, Tensor]:
    """Logit of the target and its derivative by the cosine, both [n] float32.

    c: [n] float32, clamped to [−1, 1] here (a product of rounded unit vectors can pass 1).
    """
    function = next(function for kind, function in MARGINS.values() if type(margin) is kind)
    c = c.detach().clamp(-1, 1).requires_grad_()
    with torch.enable_grad():
        logit = function(c, margin)
        (slope,) = torch.autograd.grad(logit.sum(), c)
    if margin.straight_through:
        slope = torch.full_like(slope, margin.s)
    return logit.detach(), slope
