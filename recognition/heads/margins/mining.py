"""Margins that treat hard negatives differently: those that come near the sample's own class count for more.

Proven by tests/recognition/heads/test_margins.py, tests/recognition/heads/test_margin_states.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recognition.heads.margins.fixed import ArcFace, CosFace
from recognition.heads.margins.margin import Batch, Margin, bounded, turned


@dataclass(frozen=True)
class CurricularFace(ArcFace):
    """ArcFace's target; a negative with c_j > cos(θ + m) becomes s·c_j·(t + c_j), harder as training goes on.

        t ← history·t + (1 − history)·mean(c), t₀ = 0

    Huang et al., "CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition", 2020;
    defaults the paper's. t is updated before it is used, and is no variable of the loss. Needs T.
    """

    history: float = bounded(0.99, 0, 1)

    needs_targets = True

    def initial_state(self, num_classes: int) -> dict[str, float]:
        """t, the mean target cosine so far."""
        return {"t": 0.0}

    def advance(self, state: dict[str, Tensor], batch: Batch, sums: Tensor | None = None) -> dict[str, Tensor]:
        """The t of this batch, before it uses it."""
        return {"t": self.history * state["t"] + (1 - self.history) * batch.cosine.mean()}

    def negative(self, c: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, T] as the class says."""
        t = batch.state["t"]
        hard = c > turned(batch.cosine, self.m)[:, None]
        return self.s * torch.where(hard, c * (t + c), c), self.s * torch.where(hard, t + 2 * c, 1)

    def largest_negative(self) -> float:
        """2·s: t, a mean of cosines, stays ≤ 1."""
        return 2 * self.s


@dataclass(frozen=True)
class MVSoftmax(CosFace):
    """CosFace's target; a negative with c_j > c − m becomes s·((1 + t)·c_j + t). With `easy`, c ≤ 0 keeps s·c.

    Wang et al., "Mis-classified Vector Guided Softmax Loss for Face Recognition", 2020; defaults those of
    its authors' code: t = 0.2, m = 0.35, s = 32, easy. Needs T.
    """

    s: float = 32.0
    m: float = 0.35
    t: float = bounded(0.2, 0, 10)
    easy: bool = True

    needs_targets = True

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says."""
        logit = super().target(c, norm, batch)
        return torch.where(c > 0, logit, self.s * c) if self.easy else logit

    def negative(self, c: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, T] as the class says."""
        hard = c > (batch.cosine - self.m)[:, None]
        logit = self.s * torch.where(hard, (1 + self.t) * c + self.t, c)
        return logit, self.s + self.s * self.t * hard.to(c.dtype)

    def largest_negative(self) -> float:
        """s·(1 + 2t)."""
        return self.s * (1 + 2 * self.t)


@dataclass(frozen=True)
class Circle(Margin):
    """Each cosine weighted by how far it is from where it should be; [·]₊ is a constant of the loss.

        target s·[1 + m − c]₊·(c − (1 − m)), negatives s·[c_j + m]₊·(c_j − m)

    Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", 2020, with class-level
    labels; defaults the paper's for faces: m = 0.25, s = 256. Needs L.
    """

    s: float = 256.0
    m: float = 0.25

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says."""
        factor = (1 + self.m - c.detach()).clamp_min(0)
        return self.s * factor * (c - (1 - self.m))

    def negative(self, c: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, T] as the class says."""
        slope = self.s * (c + self.m).clamp_min(0)
        return slope * (c - self.m), slope

    def largest_negative(self) -> float:
        """s·(1 − m²), at c = 1; never below 0, which c = −1 takes."""
        return self.s * max(1 - self.m**2, 0.0)
