"""Margins that follow the length of the embedding, taken as its quality.

Proven by tests/recognition/heads/test_margins.py, tests/recognition/heads/test_margin_states.py.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recognition.heads.margins.margin import Batch, Margin, angle, bounded, turned, turned_and_continued

SHORTEST, LONGEST = 1e-3, 100.0
"""Between these AdaFace clips a length before it is used."""


@dataclass(frozen=True)
class MagFace(Margin):
    """ArcFace with a margin that grows with the length a = clamp(‖x‖, norm_low, norm_high), which is itself learnt.

        m(a) = m_low + (m_high − m_low)·(a − norm_low)/(norm_high − norm_low)
        target s·cos(θ + m(a)); with `easy` c ≤ 0 keeps s·c, without it ArcFace's continuation
        loss of a sample += lambda_g·(a/norm_high² + 1/a)

    Meng et al., "MagFace: A Universal Representation for Face Recognition and Quality Assessment", 2021;
    defaults those of its authors' code: m from 0.45 to 0.8 over lengths 10 to 110, λ_g = 35, easy. m(a) carries a
    gradient: longer embeddings pay with a larger margin. Needs L, and the gathered lengths; the regulariser belongs to
    the rank's own rows.
    """

    m_low: float = bounded(0.45, 0, 1.5)
    m_high: float = bounded(0.8, 0, 1.5)
    norm_low: float = bounded(10.0, 1e-3, 1e6)
    norm_high: float = bounded(110.0, 1e-3, 1e6)
    lambda_g: float = bounded(35.0, 0, 1e6)
    easy: bool = True

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says; differentiable by the length too."""
        slope = (self.m_high - self.m_low) / (self.norm_high - self.norm_low)
        m = self.m_low + slope * (norm.clamp(self.norm_low, self.norm_high) - self.norm_low)
        if self.easy:
            return self.s * torch.where(c > 0, turned(c, m), c)
        return self.s * turned_and_continued(c, m)

    def regularizer(self, norm: Tensor) -> Tensor:
        """λ_g·(a/norm_high² + 1/a), [n]; smallest at a = norm_high, constant outside of the two lengths."""
        a = norm.clamp(self.norm_low, self.norm_high)
        return self.lambda_g * (a / self.norm_high**2 + 1 / a)

    def mistakes(self) -> list[str]:
        """Also when the two lengths are not in order."""
        wrong = [] if self.norm_low < self.norm_high else [f"norm_low: {self.norm_low!r}; expected below norm_high"]
        return super().mistakes() + wrong


@dataclass(frozen=True)
class AdaFace(Margin):
    """s·(cos(clip(θ − m·z, 1e-3, π − 1e-3)) − (m + m·z)): angular for poor images, additive for good ones.

        z = clip(h·(‖x‖ − μ)/(σ + 1e-3), −1, 1)        no gradient by the length
        μ ← history·μ + (1 − history)·mean‖x‖, σ likewise with the unbiased deviation; lengths clipped to [1e-3, 100]

    Kim, Jain and Liu, "AdaFace: Quality Adaptive Margin for Face Recognition", 2022; m = 0.4, h = 0.333 and the
    history of 0.99 the paper's, μ₀ = 20, σ₀ = 100 its authors' code's. Needs L, and the lengths of the global batch.
    A batch of one sample has no unbiased deviation: it leaves σ as it was.
    """

    m: float = 0.4
    h: float = bounded(0.333, 0, 100)
    history: float = bounded(0.99, 0, 1)

    def initial_state(self, num_classes: int) -> dict[str, float]:
        """μ and σ of the lengths."""
        return {"mean": 20.0, "deviation": 100.0}

    def advance(self, state: dict[str, Tensor], batch: Batch, sums: Tensor | None = None) -> dict[str, Tensor]:
        """μ and σ after this batch, before it uses them."""
        norm, fresh = batch.norm.detach().clamp(SHORTEST, LONGEST), 1 - self.history
        mean = self.history * state["mean"] + fresh * norm.mean()
        if len(norm) == 1:
            return {"mean": mean, "deviation": state["deviation"]}
        return {"mean": mean, "deviation": self.history * state["deviation"] + fresh * norm.std(correction=1)}

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says."""
        length = norm.detach().clamp(SHORTEST, LONGEST)
        z = (self.h * (length - batch.state["mean"]) / (batch.state["deviation"] + 1e-3)).clamp(-1, 1)
        phase = (angle(c) - self.m * z).clamp(1e-3, math.pi - 1e-3)
        return self.s * (torch.cos(phase) - (self.m + self.m * z))
