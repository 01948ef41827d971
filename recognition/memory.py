"""The memory of one shard: a row a class, when it was written, and the effective centres that it makes.

Convention: row j belongs to class start + j, as the centres' rows do. A memory row holds the last accepted sample of
its class; it is mixed into the centre anew in every step, nothing is accumulated into the weights, and no gradient
flows into it. Injection is local: beyond the gathered momentum embeddings nothing is communicated.

    effective_centers   (W, M, fresh) → W̃             pure; `mix` is the same with 1/‖W‖ given
    effective_gradient  ∂L/∂W̃ → ∂L/∂W                  its adjoint; `mix_gradient` likewise
    Memory              M, stamps, μ and σ of the norms; which rows are fresh; the write

Shapes: B rows of the global batch, d embedding size, C_r classes of the shard, n rows of a tile.
Proven by tests/recognition/test_memory.py and, in the whole step, tests/recognition/test_injection_step.py.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recognition.distributed import Ranks, sum_over_ranks
from recognition.vectors import inverse_norm, unit

SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Injection:
    """Nothing is injected: W̃ = Ŵ. The settings below are shared by all kinds that inject.

    strength: λ of eq. 6.  max_age: Δt, in optimiser steps; a row is fresh from 1 to Δt steps after it was written.
    max_age_samples: Δt in samples seen instead, so that it survives a change of batch size.
    start_epoch: whole or fractional epochs before the first injection; memory and statistics are kept from step 0.
    source: whose embeddings are written, the momentum backbone's or the online one's.
    momentum: γ of the momentum backbone, ξ ← γ·ξ + (1 − γ)·θ.  momentum_batch_norm: its BatchNorm runs in eval mode on
    averaged statistics, or on the batch's.
    duplicates: which of several samples of a class in one batch is kept, the last or the one with the largest weight.
    """

    strength: float = 0.0
    max_age: int = 0
    max_age_samples: int | None = None
    start_epoch: float = 0.0
    source: Literal["momentum", "online"] = "online"
    momentum: float = 0.99
    momentum_batch_norm: Literal["average", "train"] = "average"
    duplicates: Literal["last", "hardest"] = "last"

    @property
    def is_on(self) -> bool:
        """Whether anything is ever injected."""
        return type(self) is not Injection

    @property
    def needs_momentum(self) -> bool:
        """Whether the momentum backbone runs."""
        return self.is_on and self.source == "momentum"


@dataclass(frozen=True)
class VPL(Injection):
    """Every sample, at unit length, with a fixed share: W̃ = unit((1 − λ)·Ŵ + λ·x̂).

    Deng et al., Variational Prototype Learning, CVPR 2021; λ, Δt and the online embedding as in its published
    implementation, which starts after 8,000 steps (here an epoch to set for the data at hand).
    """

    strength: float = 0.15
    max_age: int = 200
    start_epoch: float = 1.0


@dataclass(frozen=True)
class QAFace(Injection):
    """Recognisable samples, the worse the heavier: W̃ = unit(Ŵ + λ·f(z)·û), f(z) = exp(−z) for z ≥ −τ, else ignored.

    "A Quality Aware Sample-to-Sample Comparison for Face Recognition", WACV 2023, eqs. 6 to 12.
    tau: τ.  stat_momentum: α, the weight of the history in μ and σ.
    norm_source: whose norm tells quality.  unrecognizable: samples with f = 0 are skipped, or overwrite with zero.
    """

    strength: float = 1.0
    max_age: int = 1000
    start_epoch: float = 4.0
    source: Literal["momentum", "online"] = "momentum"
    tau: float = 2.0
    stat_momentum: float = 0.99
    norm_source: Literal["momentum", "online"] = "momentum"
    unrecognizable: Literal["skip", "zero"] = "skip"

    @property
    def needs_momentum(self) -> bool:
        """Whether the momentum backbone runs."""
        return "momentum" in (self.source, self.norm_source)


INJECTIONS: dict[str, type[Injection]] = {"none": Injection, "vpl": VPL, "qaface": QAFace}


def mix(weight: Tensor, inverse: Tensor, memory: Tensor, fresh: Tensor, injection: Injection) -> tuple[Tensor, Tensor]:
    """W̃ of rows [n, d], and what `mix_gradient` needs of it, [n, 1]: how much of a change of Ŵ reaches W̃.

    inverse: [n, 1] 1/‖W‖.  fresh: boolean [n]; a row that is not takes the plain unit centre W/‖W‖ to the bit.
    """
    is_fresh = fresh[:, None]
    share = 1 - injection.strength if isinstance(injection, VPL) else 1.0
    mixed = weight * torch.where(is_fresh, share * inverse, inverse)
    mixed.addcmul_(memory, is_fresh.to(mixed.dtype), value=injection.strength)
    length = torch.where(is_fresh, inverse_norm(mixed), 1)
    return mixed * length, torch.where(is_fresh, share * length, 1)


def mix_gradient(gradient: Tensor, weight: Tensor, inverse: Tensor, effective: Tensor, reach: Tensor) -> Tensor:
    """∂L/∂W [n, d] from ∂L/∂W̃ [n, d], which is used up; the memory is a constant.

    Through both normalisations: t = g − (g·W̃)W̃, then (t − (t·Ŵ)Ŵ)·reach/‖W‖ with Ŵ = W/‖W‖.
    """
    radial = torch.linalg.vecdot(gradient, effective)[:, None]
    gradient.addcmul_(effective, radial, value=-1)
    radial = torch.linalg.vecdot(gradient, weight)[:, None] * inverse.square()
    return gradient.addcmul_(weight, radial, value=-1).mul_(reach * inverse)


def effective_centers(weight: Tensor, memory: Tensor, fresh: Tensor, injection: Injection) -> Tensor:
    """W̃ of rows [n, d]: the mix where `fresh` [n], elsewhere the plain unit centre to the bit."""
    return mix(weight, inverse_norm(weight), memory, fresh, injection)[0]


def effective_gradient(
    gradient: Tensor, weight: Tensor, memory: Tensor, fresh: Tensor, injection: Injection
) -> Tensor:
    """∂L/∂W [n, d] from ∂L/∂W̃, through both normalisations; the memory is a constant."""
    inverse = inverse_norm(weight)
    return mix_gradient(gradient.clone(), weight, inverse, *mix(weight, inverse, memory, fresh, injection))


class Memory:
    """One shard's memory rows and their stamps, and the statistics of the norms, which are the same on all ranks.

    rows: [C_r, d], as stored: float32, or bfloat16 rounded to the nearest.
    stamp: [C_r] int64, the step of the last write, −1 for never.
    statistics: [3] float32: μ, σ, and whether there have been any (0 or 1).
    seen: figures of the last write for the log, [4] float32: samples, unrecognisable, unusable, sum of weights.
    injected: samples of the last step whose own class on this shard was injected, scalar.
    """

    def __init__(self, injection: Injection, num_rows: int, size: int, device: torch.device, batch_size: int,
                 start_step: int, stored: torch.dtype = torch.float32) -> None:
        self.injection = injection
        self.start_step = start_step
        samples = injection.max_age_samples
        self.max_age = injection.max_age if samples is None else samples // batch_size
        self.rows = torch.zeros(num_rows, size, device=device, dtype=stored)
        self.stamp = torch.full((num_rows,), -1, dtype=torch.int64, device=device)
        self.statistics = torch.zeros(3, device=device)
        self.seen = torch.zeros(4, device=device)
        self.injected = torch.zeros((), device=device)

    def injects(self, step: int) -> bool:
        """Whether the settings let anything be injected in this step."""
        return step >= self.start_step and self.injection.strength != 0 and self.max_age > 0

    def fresh(self, index: Tensor | slice, step: int) -> Tensor:
        """Whether rows are injected in this step, boolean [n]: written, 1 ≤ step − stamp ≤ Δt, injection started."""
        stamp = self.stamp[index]
        age = step - stamp
        return (stamp >= 0) & (age >= 1) & (age <= self.max_age) & self.injects(step)

    @torch.no_grad()
    def totals(self, weight: Tensor, step: int, rows_at_once: int = 1 << 16) -> Tensor:
        """Over this shard: fresh rows, Σ ‖λM‖/‖Ŵ‖ and Σ angle(Ŵ, W̃) in degrees over them, all rows; float64 [4]."""
        total = torch.zeros(4, dtype=torch.float64, device=weight.device)
        total[3] = len(weight)
        for low in range(0, len(weight), rows_at_once):
            part = slice(low, low + rows_at_once)
            fresh, memory, w = self.fresh(part, step), self.rows[part].float(), weight[part].float()
            inverse = inverse_norm(w)
            effective, _ = mix(w, inverse, memory, fresh, self.injection)
            cosine = (w * inverse * effective).sum(dim=1)
            angle = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
            ratio = self.injection.strength * torch.linalg.vector_norm(memory, dim=1)
            total[:3] += torch.stack([fresh.sum(), (ratio * fresh).sum(), (angle * fresh).sum()]).double()
        return total

    def figures(self, weight: Tensor, step: int, ranks: Ranks) -> dict[str, float]:
        """What injection does, for the log, over all ranks. A collective: all ranks call it.

        norm_mean, norm_deviation: μ and σ.  unrecognizable, unusable: shares of the last batch with f = 0, and with an
        embedding that is zero or not finite.  mean_weight: of the others.  fresh: share of all classes;
        memory_ratio: mean ‖λM‖/‖Ŵ‖ and center_angle: mean degrees from Ŵ to W̃, over fresh classes.
        injected_positives: share of the last batch whose own class was injected.
        """
        last = torch.stack([self.injected.double(), *self.totals(weight, step)])
        injected, fresh, ratio, angle, rows = sum_over_ranks(last, ranks).tolist()
        samples, unrecognizable, unusable, weight_sum = self.seen.tolist()
        mean, deviation, _ = self.statistics.tolist()
        return {
            "norm_mean": mean,
            "norm_deviation": deviation,
            "unrecognizable": unrecognizable / max(samples, 1),
            "unusable": unusable / max(samples, 1),
            "mean_weight": weight_sum / max(samples - unrecognizable - unusable, 1),
            "fresh": fresh / max(rows, 1),
            "memory_ratio": ratio / max(fresh, 1),
            "center_angle": angle / max(fresh, 1),
            "injected_positives": injected / max(samples, 1),
        }

    @torch.no_grad()
    def write(self, embedding: Tensor, norm: Tensor, local_label: Tensor, step: int, good: Tensor) -> None:
        """Remember this step's samples, after the centres were read.

        embedding: [B, d], the ones to remember.  norm: [B], the quality proxy.  local_label: [B] int64, label − start;
        rows of other ranks lie outside [0, C_r).  good: boolean scalar; False changes nothing.
        """
        embedding, norm = embedding.float(), norm.float()
        owned = (local_label >= 0) & (local_label < len(self.rows))
        if len(self.rows):
            self.injected = (owned & self.fresh(local_label.clamp(0, len(self.rows) - 1), step)).sum().float()
        length = torch.linalg.vector_norm(embedding, dim=1)
        usable = torch.isfinite(length) & (length > 0) & torch.isfinite(norm)
        weight = torch.ones_like(norm)
        if isinstance(self.injection, QAFace):
            self._update_statistics(norm, good)
            weight = torch.where(usable, quality_weight(norm, self.statistics, self.injection.tau), 0)
        recognisable = usable & (weight > 0)
        total_weight = torch.where(recognisable, weight, 0).sum()
        samples = torch.full_like(total_weight, len(norm))
        figures = (samples, (usable & ~recognisable).sum(), (~usable).sum(), total_weight)
        self.seen = torch.stack([figure.float() for figure in figures])
        zeroes = isinstance(self.injection, QAFace) and self.injection.unrecognizable == "zero"
        writes = (usable if zeroes else recognisable) & owned & good
        order = weight.nan_to_num() if self.injection.duplicates == "hardest" else None
        if len(self.rows):
            self._store(unit(embedding) * weight[:, None], local_label, last_of_each(local_label, writes, order), step)

    def _store(self, new: Tensor, row: Tensor, winner: Tensor, step: int) -> None:
        """Write the samples where `winner` [B] is true to their rows, in fixed shapes: the host need not know how many.

        Every other sample repeats what the first winner writes, or, where there is none, writes back what is there.
        """
        first, some = winner.int().argmax(), winner.any()
        source = torch.where(winner, torch.arange(len(winner), device=winner.device), first)
        row = row[source].clamp(0, len(self.rows) - 1)  # without a winner: any row
        self.rows[row] = torch.where(some, new[source].to(self.rows.dtype), self.rows[row])
        self.stamp[row] = torch.where(some, step, self.stamp[row])

    def _update_statistics(self, norm: Tensor, good: Tensor) -> None:
        """μ ← α·μ + (1 − α)·mean, σ likewise (eqs. 8 and 9), over the finite norms; the first batch sets both."""
        assert isinstance(self.injection, QAFace)
        finite = torch.isfinite(norm)
        count = finite.sum().clamp_min(1)
        mean = torch.where(finite, norm, 0).double().sum() / count
        spread = (torch.where(finite, norm.double() - mean, 0).square().sum() / count).sqrt()
        batch = torch.stack([mean, spread.clamp_min(SMALLEST_DEVIATION), torch.ones_like(mean)]).float()
        alpha = self.injection.stat_momentum
        history = torch.where(self.statistics[2] > 0, alpha * self.statistics + (1 - alpha) * batch, batch)
        history[1].clamp_min_(SMALLEST_DEVIATION)
        torch.where(good & finite.any(), history, self.statistics, out=self.statistics)


def quality_weight(norm: Tensor, statistics: Tensor, tau: float) -> Tensor:
    """f(z) = exp(−z) where z = (norm − μ)/σ ≥ −τ, else 0 (eqs. 10 and 11); float32 [B]."""
    z = (norm.float() - statistics[0]) / statistics[1]
    return torch.where(z >= -tau, torch.exp(-z), 0)


def last_of_each(label: Tensor, candidate: Tensor, order: Tensor | None = None) -> Tensor:
    """Which samples are the one candidate of their label: the last, or the last with the largest `order`; boolean [B].

    label: [B] int64.  candidate: boolean [B].  order: [B], no NaN.  A fixed rule whatever the device: stable sorts,
    never a race.
    """
    index = torch.arange(len(label), device=label.device)
    for key in (order, candidate.int(), label):  # the last sort is the first criterion
        if key is not None:
            index = index[key[index].sort(stable=True).indices]
    grouped = label[index]
    is_last = torch.ones_like(candidate)
    is_last[:-1] = grouped[1:] != grouped[:-1]
    return torch.zeros_like(candidate).scatter_(0, index, is_last & candidate[index])
