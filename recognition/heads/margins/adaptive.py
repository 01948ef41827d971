"""Margins whose strength is not fixed beforehand: AdaCos finds its scale, ElasticFace draws its margin.

Proven by tests/recognition/heads/test_margins.py, tests/recognition/heads/test_margin_states.py.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recognition.heads.margins.margin import Batch, Margin, bounded, turned_and_continued

SMALLEST_SCALE = 1.0
"""AdaCos' scale is kept from falling below this: with few classes its formulas reach 0 and less."""


@dataclass(frozen=True)
class AdaCos(Margin):
    """s·c with a scale that is not set but found.

        fixed    s = √2·ln(C − 1)
        dynamic  starts there; s ← ln(mean_i Σ_j≠y exp(s·c_ij)) / cos(min(π/4, median θ)), the sum with s before

    Zhang et al., "AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face Representations", 2019.
    Of an even number of angles the median is the lower of the two in the middle. The setting s is the
    largest scale that may be reached (the paper has no limit): the sums, and with them s, grow without bound when all
    embeddings fall together. Dynamic needs T and G, fixed L; both keep the scale in the state, which the fixed one
    never changes.
    """

    dynamic: bool = True

    @property
    def needs_targets(self) -> bool:
        """The median angle comes before any logit."""
        return self.dynamic

    @property
    def needs_sums(self) -> bool:
        """The sums with the scale before this step."""
        return self.dynamic

    def initial_state(self, num_classes: int) -> dict[str, float]:
        """The fixed scale."""
        return {"s": min(max(math.sqrt(2) * math.log(max(num_classes - 1, 1)), SMALLEST_SCALE), self.s)}

    def advance(self, state: dict[str, Tensor], batch: Batch, sums: Tensor | None = None) -> dict[str, Tensor]:
        """The scale of this step; sums: [B] Σ_j≠y exp(s·c_ij) over all ranks with the scale before."""
        if not self.dynamic:
            return dict(state)
        assert sums is not None
        # The lower median angle is the upper median cosine, and cos(min(π/4, θ)) = max(cos π/4, c).
        median = batch.cosine.sort().values[len(batch.cosine) // 2]
        scale = sums.mean().log() / median.clamp_min(math.cos(math.pi / 4))
        return {"s": scale.clamp(SMALLEST_SCALE, self.s)}

    def scale(self, state: dict[str, Tensor]) -> Tensor:
        """0-dim."""
        return state["s"]


@dataclass(frozen=True)
class ElasticFace(Margin):
    """ArcFace (`arc`) or CosFace (`cos`) whose margin is drawn anew for every sample, m_i ~ N(mean, deviation).

    Boutros et al., "ElasticFace: Elastic Margin Loss for Deep Face Recognition", 2022. `plus`: the batch's
    draws are dealt out by difficulty, the largest to the smallest target cosine. mean, deviation: none takes the
    paper's, 0.5 (arc) or 0.35 (cos) and 0.05, with plus 0.0175 (arc) or 0.02 (cos). Needs L, with plus as well:
    `target` is evaluated on every rank for the whole batch, after the target cosines were reduced.
    """

    kind: Literal["arc", "cos"] = "arc"
    plus: bool = False
    mean: float | None = bounded(None, 0, 3)
    deviation: float | None = bounded(None, 0, 1)

    draws = True

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says."""
        m = self.margins(batch)
        return self.s * (turned_and_continued(c, m) if self.kind == "arc" else c - m)

    def margins(self, batch: Batch) -> Tensor:
        """The margin of each sample, [B]."""
        assert batch.normal is not None
        mean = self.mean if self.mean is not None else {"arc": 0.5, "cos": 0.35}[self.kind]
        deviation = self.deviation
        if deviation is None:
            deviation = {"arc": 0.0175, "cos": 0.02}[self.kind] if self.plus else 0.05
        m = mean + deviation * batch.normal
        if not self.plus:
            return m
        hardest_first = batch.cosine.argsort(stable=True)
        return torch.empty_like(m).scatter_(0, hardest_first, m.sort(descending=True).values)
