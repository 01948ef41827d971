"""What a margin is: the base class, what it may know of the batch, and the target's logit with its derivatives.

Convention: `c` is the cosine between a unit embedding and a unit centre, in [−1, 1]; θ = arccos c; s scales. A margin
is a frozen dataclass: its fields are its settings, its methods are its formulas, pure and without state. What changes
while training (a threshold, a scale, a bias) is a dict of 0-dim tensors that the head owns, the same on all ranks.
Nothing here reads a tensor's value on the host, and everything works in float32 and in float64.

`sine` and `angle` bound their derivative near |c| = 1, where that of the mathematics is infinite.
Proven by tests/recognition/heads/test_margins.py.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

SINE_FLOOR = 1e-3
"""Smallest sin θ that a derivative divides by: |dθ/dc| stays ≤ 1000."""


SAFE_LOGIT = 70.0
"""Largest logit whose exponential, summed over 10^7 classes, float32 still holds: e^70 · 10^7 = 2.5e37 < 3.4e38."""


class Batch(NamedTuple):
    """What a margin may know about the global batch; the same on all ranks, none of it carries a gradient.

    cosine: [B] target cosines, reduced over ranks, in [−1, 1].  norm: [B] ‖x‖, lengths of the raw embeddings.
    normal: [B] a standard normal draw a sample, for margins with `draws`.
    state: 0-dim tensors by name; for `Margin.advance` those before this step, for all else those of this step.
    """

    cosine: Tensor
    norm: Tensor
    normal: Tensor | None
    state: dict[str, Tensor]


def bounded(default: Any, low: float, high: float) -> Any:
    """A field of a margin with the range that `mistakes` holds it to."""
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class Margin:
    """What all margins share; by itself a softmax of s·c. A kind states its facts as plain class attributes.

    s: scale of the logits.  straight_through: the target's gradient passes through the margin unchanged (slope s), as
    in implementations that modify logits in place without recording it; the logit is the same. Default: the true
    derivative.
    """

    s: float = 64.0
    straight_through: bool = False

    @property
    def needs_targets(self) -> bool:
        """T: negatives, or the state they use, depend on all target cosines: one more all-reduce [B] before them."""
        return False

    @property
    def needs_sums(self) -> bool:
        """G: `advance` needs Σ_j≠y exp(s·c_j) with the scale before this step, [B]: one more pass over the classes."""
        return False

    @property
    def draws(self) -> bool:
        """A random number a sample: `Batch.normal` must be there."""
        return False

    @property
    def binary(self) -> bool:
        """SUM: no softmax, loss = positive_weight·softplus(−u) + negative_weight·Σ_j w_j·softplus(v_j).

        u is `target` and v are `negative`; w_j makes up for classes that were not sampled. The bias is state["bias"].
        """
        return False

    @property
    def plain_negatives(self) -> bool:
        """Negatives are scale·c: a head may form them without asking."""
        return type(self).negative is Margin.negative

    @property
    def centers_per_class(self) -> int:
        """K centres a class, of which the one nearest to the embedding counts."""
        return 1

    @property
    def positive_weight(self) -> float:
        """Of a sample's own class in its loss (binary kinds)."""
        return 1.0

    @property
    def negative_weight(self) -> float:
        """Of each other class in a sample's loss (binary kinds)."""
        return 1.0

    @property
    def bias_slope(self) -> float:
        """∂u/∂bias = ∂v/∂bias (binary kinds)."""
        return 0.0

    def initial_state(self, num_classes: int) -> dict[str, float]:
        """What changes while training, at its start; empty for most kinds."""
        return {}

    def advance(self, state: dict[str, Tensor], batch: Batch, sums: Tensor | None = None) -> dict[str, Tensor]:
        """The state of this step from that of the step before; a new dict. sums: [B], where `needs_sums`.

        A batch that is not finite gives a state that is not: the caller keeps the old one then.
        """
        return dict(state)

    def scale(self, state: dict[str, Tensor]) -> Tensor | float:
        """The factor of plain cosines: s, or a 0-dim tensor where it is part of the state."""
        return self.s

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """Logit of each sample's own class, [B], differentiable by c [B] and norm [B]."""
        return self.scale(batch.state) * c

    def negative(self, c: Tensor, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Logits of other classes from their cosines, both [B, T], and ∂logit/∂c: [B, T], or what all of them share.

        Row i belongs to sample i of the batch. Parts that are constants in the formula are constants here.
        """
        scale = self.scale(batch.state)
        return scale * c, scale

    def largest_negative(self) -> float:
        """No negative's logit passes this for c in [−1, 1]; infinite where there is no such number."""
        return self.s

    def regularizer(self, norm: Tensor) -> Tensor | None:
        """A term of each sample's loss, [n], differentiable by norm [n]; None where there is none."""
        return None

    def mistakes(self) -> list[str]:
        """Settings outside of their ranges, each as `name: value; expected …`."""
        found = []
        for item in fields(self):
            value, limits = getattr(self, item.name), item.metadata.get("range")
            if limits and value is not None and math.isfinite(value) and not limits[0] <= value <= limits[1]:
                found.append(f"{item.name}: {value!r}; expected {limits[0]} to {limits[1]}")
        return found


def target_logit(c: Tensor, margin: Margin, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logit of the target, its derivative by the cosine, and by the embedding's length (None: none), all [B].

    c: [B], clamped to [−1, 1] here (a product of rounded unit vectors can pass 1). The derivatives are those of
    `Margin.target`, taken by autograd over these B numbers.
    """
    c = c.detach().clamp(-1, 1).requires_grad_()
    norm = batch.norm.detach().requires_grad_()
    with torch.enable_grad():
        logit = margin.target(c, norm, batch)
        by_cosine, by_norm = torch.autograd.grad(logit.sum(), (c, norm), allow_unused=True)
    if margin.straight_through:
        return logit.detach(), torch.ones_like(c.detach()) * margin.scale(batch.state), None
    return logit.detach(), by_cosine, by_norm


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


def turned(c: Tensor, m: Tensor | float) -> Tensor:
    """Cos(θ + m), by the sum of angles."""
    if isinstance(m, Tensor):
        return c * torch.cos(m) - sine(c) * torch.sin(m)
    return c * math.cos(m) - sine(c) * math.sin(m)


def turned_and_continued(c: Tensor, m: Tensor | float) -> Tensor:
    """Cos(θ + m); past θ = π − m, where that turns back, c − m·sin m. Deng et al., ArcFace, 2019."""
    if isinstance(m, Tensor):
        return torch.where(c > -torch.cos(m), turned(c, m), c - m * torch.sin(m))
    return torch.where(c > -math.cos(m), turned(c, m), c - m * math.sin(m))


def falling_cosine(phase: Tensor) -> Tensor:
    """(−1)^k cos φ − 2k with k = ⌊φ/π⌋: cos φ kept falling past π. Liu et al., SphereFace, 2017, eq. 7."""
    k = torch.floor(phase.detach() / math.pi)
    return (1 - 2 * (k % 2)) * torch.cos(phase) - 2 * k
