"""The sharded head: class centres split over ranks, a tiled margin softmax, and its gradients, in one call a step.

The head is no link of the autograd graph. `step` gathers the embeddings, picks the rows of this step, forms their
effective centres tile by tile, computes the loss over all ranks' rows, updates the centres it used and returns this
rank's part of the embedding gradient, which the caller sends through the backbone.

Shapes: b rows a rank, B = R·b in the global batch, d embedding size, C classes, C_r of them on this rank, k rows of
the shard used in this step, T rows of one tile.

Two passes over tiles of T rows, so that neither [B, k] logits nor a [k, d] gradient has to exist:
  1. cosines → Σ_j≠y exp(logit_j) per sample, the target left out inside the tile, and the target's cosine;
     one all-reduce of [B, 2] joins the ranks;
  2. cosines again → coefficients ∂L/∂cosine → embedding gradient (summed over tiles and ranks) and the tile's centre
     gradient, applied to the tile's rows on the spot.
When one tile holds all k rows, the cosines of pass 1 are kept and pass 2 computes no product again.

The unit vectors bound the logits by s. Up to s = 70 their exponentials fit float32 without a running maximum; above,
the maximum over ranks is subtracted first (one more all-reduce of [B]).
Proven by tests/recognition/heads/test_sharded.py against a dense float64 head on 1, 2 and 4 processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recognition.distributed import Ranks, gather_rows, max_over_ranks, reduce_scatter_rows, sum_over_ranks
from recognition.heads.centers import RowSGD, initial_centers, shard_range
from recognition.heads.margins import Margin, target_logit

SAFE_LOGIT = 70.0
"""Largest logit whose exponential, summed over 10^7 classes, float32 still holds: e^70 · 10^7 = 2.5e37 < 3.4e38."""

SMALLEST_NORM = 1e-12
"""A vector this short has no direction: its unit vector and its gradient are zero."""


@dataclass(frozen=True)
class HeadSettings:
    """How the classes are learnt.

    sample_rate: share of each shard's classes that a step uses; the classes present in the batch always are.
    momentum, weight_decay: of the centres' row-wise SGD.  lr_scale: their learning rate over the backbone's.
    logit_bytes: memory that one tile of logits may take on a rank.
    """

    margin: Margin
    sample_rate: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_scale: float = 1.0
    logit_bytes: int = 1 << 28


class HeadStep(NamedTuple):
    """What one step of the head gives back.

    loss: scalar float32, the mean over the global batch, the same on all ranks.
    embedding_gradient: [b, d] float32, ∂loss/∂embedding of this rank's rows (it carries 1/B).
    finite: boolean scalar on the device, the same on all ranks. False: no centre was changed.
    """

    loss: Tensor
    embedding_gradient: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of the shard that a step uses.

    index: [k] int64 rows of the shard, sorted; None means all of them.
    column: [B] int64, the place among the used rows of each sample's class; −1 where another rank owns it.
    count: k, how many rows are used.
    """

    index: Tensor | None
    column: Tensor
    count: int


def pick_rows(local_label: Tensor, num_rows: int, sample_rate: float, generator: torch.Generator) -> Rows:
    """All classes of the batch that this shard owns, and random others up to `sample_rate` of the shard.

    local_label: [B] int64, label − start; owned where in [0, num_rows).
    """
    owned = (local_label >= 0) & (local_label < num_rows)
    if sample_rate >= 1:
        return Rows(None, torch.where(owned, local_label, -1), num_rows)
    positive = torch.unique(local_label[owned])
    count = max(len(positive), int(sample_rate * num_rows))
    score = torch.rand(num_rows, generator=generator, device=local_label.device)
    score[positive] = 2.0
    index = score.topk(count).indices.sort().values
    column = torch.searchsorted(index, local_label)
    return Rows(index, torch.where(owned, column, -1), count)


def unit(x: Tensor) -> Tensor:
    """Rows of x at unit length; rows shorter than SMALLEST_NORM become zero, those with a NaN stay NaN."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(norm <= SMALLEST_NORM, 0, x / norm.clamp_min(SMALLEST_NORM))


def unit_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient by x of a loss whose gradient by unit(x) is given: (g − (g·x̂)x̂) / ‖x‖. Zero where unit(x) is zero."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    x_hat = unit(x)
    tangent = gradient - (gradient * x_hat).sum(dim=1, keepdim=True) * x_hat
    return torch.where(norm <= SMALLEST_NORM, 0, tangent / norm.clamp_min(SMALLEST_NORM))


class ShardedHead:
    """One rank's share of the classes: centres, their momentum, and the step that trains them.

    weight, velocity: [C_r, d] float32. product_dtype: of the matrix products; everything else is float32.
    """

    def __init__(
        self,
        settings: HeadSettings,
        num_classes: int,
        embedding_size: int,
        ranks: Ranks,
        seed: int = 0,
        product_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings = settings
        self.num_classes = num_classes
        self.ranks = ranks
        self.seed = seed
        self.product_dtype = product_dtype
        self.start, self.stop = shard_range(num_classes, ranks.rank, ranks.world_size)
        self.optimizer = RowSGD(settings.momentum, settings.weight_decay)
        self.weight = initial_centers(seed, self.start, self.stop, embedding_size, ranks.device)
        self.velocity = torch.zeros_like(self.weight)

    def state(self) -> dict[str, Tensor]:
        """The tensors whose row j belongs to class start + j: what a checkpoint stores and another sharding cuts."""
        return {"weight": self.weight, "velocity": self.velocity}

    def rows(self, label: Tensor, step: int) -> Rows:
        """The rows of this step for the global batch's labels [B]: a pure function of (seed, step, rank, labels)."""
        generator = torch.Generator(label.device)
        stream = np.random.SeedSequence((self.seed, step, self.ranks.rank)).generate_state(1, np.uint64)
        generator.manual_seed(int(stream[0] >> 1))
        return pick_rows(label - self.start, len(self.weight), self.settings.sample_rate, generator)

    @torch.no_grad()
    def step(self, embedding: Tensor, label: Tensor, step: int, lr: float) -> HeadStep:
        """Loss and embedding gradient of this step; updates the centres that it used.

        embedding: [b, d] raw (not unit length), any float type.  label: [b] int64 in [0, C).
        step: number of this optimiser step, counted from 0.  lr: learning rate of the backbone.
        """
        x = gather_rows(embedding.detach(), self.ranks).float()
        label = gather_rows(label, self.ranks)
        rows = self.rows(label, step)
        x_hat = unit(x).to(self.product_dtype)

        total, peak, target_cosine, kept = self._first_pass(x_hat, rows)
        finite = torch.isfinite(total).all() & torch.isfinite(target_cosine).all()
        logit, slope = target_logit(target_cosine, self.settings.margin)
        # log Σ over negatives; −inf where a sample has none.
        log_others = total.log() + peak
        loss = torch.nn.functional.softplus(log_others - logit).mean()
        # 1 − p of the target, without the cancellation of 1 − exp(logit − log Z).
        missing = torch.sigmoid(log_others - logit)
        log_z = torch.logaddexp(log_others, logit)

        x_hat_gradient = torch.zeros_like(x)
        coefficient_of_target = -missing * slope / len(x)
        for low, high, cosine in self._cosines(x_hat, rows, kept):
            coefficient = self._coefficients(cosine, log_z, coefficient_of_target, rows.column - low)
            centers = self._weight_rows(rows, low, high)
            x_hat_gradient += (coefficient @ unit(centers).to(self.product_dtype)).float()
            self._update(rows, low, high, unit_gradient((coefficient.T @ x_hat).float(), centers), lr, finite)
        own = slice(self.ranks.rank * len(embedding), (self.ranks.rank + 1) * len(embedding))
        gradient = unit_gradient(reduce_scatter_rows(x_hat_gradient, self.ranks), x[own])
        return HeadStep(loss, gradient, finite)

    def _first_pass(self, x_hat: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Per sample over all ranks: Σ_j≠y exp(logit_j − peak), peak, target cosine, each [B]; and cosines to keep."""
        s = self.settings.margin.s
        sums = x_hat.new_zeros((len(x_hat), 2), dtype=torch.float32)
        peak = sums.new_zeros(len(x_hat)) if s <= SAFE_LOGIT else self._peak(x_hat, rows)
        kept = None
        for low, high, cosine in self._cosines(x_hat, rows):
            mine, column = _targets_in(rows.column - low, high - low)
            exponential = torch.exp(cosine * s - peak[:, None])
            sums[mine, 1] = cosine[mine, column]
            exponential[mine, column] = 0
            sums[:, 0] += exponential.sum(dim=1)
            kept = cosine if high - low == rows.count else None
        sum_over_ranks(sums, self.ranks)
        return sums[:, 0], peak, sums[:, 1], kept

    def _peak(self, x_hat: Tensor, rows: Rows) -> Tensor:
        """Largest logit of a negative over all ranks, [B]."""
        peak = x_hat.new_full((len(x_hat),), -self.settings.margin.s, dtype=torch.float32)
        for low, high, cosine in self._cosines(x_hat, rows):
            mine, column = _targets_in(rows.column - low, high - low)
            cosine[mine, column] = -1
            peak = torch.maximum(peak, cosine.amax(dim=1) * self.settings.margin.s)
        return max_over_ranks(peak, self.ranks)

    def _cosines(self, x_hat: Tensor, rows: Rows, kept: Tensor | None = None) -> Iterator[tuple[int, int, Tensor]]:
        """Tiles (low, high, cosine [B, T] float32) of the rows used; just `kept` when all were kept."""
        if kept is not None:
            yield 0, rows.count, kept
            return
        tile = max(1, self.settings.logit_bytes // (8 * len(x_hat)))
        for low in range(0, rows.count, tile):
            high = min(low + tile, rows.count)
            centers = unit(self._weight_rows(rows, low, high)).to(self.product_dtype)
            yield low, high, (x_hat @ centers.T).float().clamp_(-1, 1)

    def _coefficients(self, cosine: Tensor, log_z: Tensor, of_target: Tensor, column: Tensor) -> Tensor:
        """∂loss/∂cosine of one tile, [B, T] in product_dtype: p_j·s/B for negatives, `of_target` for targets."""
        s = self.settings.margin.s
        mine, column = _targets_in(column, cosine.shape[1])
        coefficient = cosine.mul(s).sub_(log_z[:, None]).exp_().mul_(s / len(cosine))
        coefficient[mine, column] = of_target[mine]
        return coefficient.to(self.product_dtype)

    def _weight_rows(self, rows: Rows, low: int, high: int) -> Tensor:
        return self.weight[low:high] if rows.index is None else self.weight[rows.index[low:high]]

    def _update(self, rows: Rows, low: int, high: int, gradient: Tensor, lr: float, finite: Tensor) -> None:
        lr = lr * self.settings.lr_scale
        if rows.index is None:
            self.optimizer.update(self.weight[low:high], self.velocity[low:high], gradient, lr, finite)
            return
        index = rows.index[low:high]
        weight, velocity = self.weight[index], self.velocity[index]
        self.optimizer.update(weight, velocity, gradient, lr, finite)
        self.weight[index], self.velocity[index] = weight, velocity


def _targets_in(column: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Samples whose target lies in a tile of `width` rows, and its column there."""
    mine = ((column >= 0) & (column < width)).nonzero().squeeze(1)
    return mine, column[mine]
