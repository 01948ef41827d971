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

import torch
from torch import Tensor

from recognition.distributed import Ranks, gather_rows, max_over_ranks, reduce_scatter_rows, sum_over_ranks
from recognition.heads.centers import RowSGD, initial_centers, shard_range
from recognition.heads.margins import Batch, Margin, target_logit
from recognition.memory import Injection, Memory, effective_centers, effective_gradient
from recognition.streams import stream_key
from recognition.vectors import unit, unit_gradient

_NEGATIVES = 0x6E656761746976  # keeps this use of a seed apart from others

SAFE_LOGIT = 70.0
"""Largest logit whose exponential, summed over 10^7 classes, float32 still holds: e^70 · 10^7 = 2.5e37 < 3.4e38."""


@dataclass(frozen=True)
class HeadSettings:
    """How the classes are learnt.

    sample_rate: share of each shard's classes that a step uses; the classes present in the batch always are.
    momentum, weight_decay: of the centres' row-wise SGD.  lr_scale: their learning rate over the backbone's.
    logit_bytes: memory that one tile of logits may take on a rank.  inject: what is mixed into the centres.
    """

    margin: Margin
    sample_rate: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_scale: float = 1.0
    logit_bytes: int = 1 << 28
    inject: Injection = Injection()  # noqa: RUF009 (frozen)


class HeadStep(NamedTuple):
    """What one step of the head gives back.

    loss: scalar float32, the mean over the global batch, the same on all ranks.
    embedding_gradient: [b, d] float32, ∂loss/∂embedding of this rank's rows (it carries 1/B).
    finite: boolean scalar on the device, the same on all ranks. False: no centre was changed.
    embedding, label: the global batch, [B, d] float32 and [B] int64, for `remember`.
    """

    loss: Tensor
    embedding_gradient: Tensor
    finite: Tensor
    embedding: Tensor
    label: Tensor


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

    def tile(self, low: int, high: int) -> Tensor | slice:
        """What selects the used rows [low, high) from a tensor of the shard's rows."""
        return slice(low, high) if self.index is None else self.index[low:high]


_Tile = tuple[int, int, Tensor, Tensor]


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


class ShardedHead:
    """One rank's share of the classes: centres, their momentum, and the step that trains them.

    weight, velocity: [C_r, d] float32. product_dtype: of the matrix products; everything else is float32.
    batch_size, start_step: of the run, for injection's age in samples and for when it starts.
    """

    def __init__(
        self,
        settings: HeadSettings,
        num_classes: int,
        embedding_size: int,
        ranks: Ranks,
        seed: int = 0,
        product_dtype: torch.dtype = torch.float32,
        batch_size: int = 1,
        start_step: int = 0,
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
        self.memory = None
        if settings.inject.is_on:
            rows = self.stop - self.start
            self.memory = Memory(settings.inject, rows, embedding_size, ranks.device, batch_size, start_step)

    def state(self) -> dict[str, Tensor]:
        """The tensors whose row j belongs to class start + j: what a checkpoint stores and another sharding cuts."""
        rows = {"weight": self.weight, "velocity": self.velocity}
        return rows if self.memory is None else rows | {"memory": self.memory.rows, "stamp": self.memory.stamp}

    def rows(self, label: Tensor, step: int) -> Rows:
        """The rows of this step for the global batch's labels [B]: a pure function of (seed, step, rank, labels)."""
        generator = torch.Generator(label.device)
        generator.manual_seed(int(stream_key(_NEGATIVES, self.seed, step, self.ranks.rank)[0] >> 1))
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

        total, peak, target_cosine, kept = self._first_pass(x_hat, rows, step)
        finite = torch.isfinite(total).all() & torch.isfinite(target_cosine).all()
        batch = Batch(target_cosine, torch.linalg.vector_norm(x, dim=1), None, {})
        logit, slope, _ = target_logit(target_cosine, self.settings.margin, batch)
        # log Σ over negatives; −inf where a sample has none.
        log_others = total.log() + peak
        loss = torch.nn.functional.softplus(log_others - logit).mean()
        # 1 − p of the target, without the cancellation of 1 − exp(logit − log Z).
        missing = torch.sigmoid(log_others - logit)
        log_z = torch.logaddexp(log_others, logit)

        # 1/B is left to the float32 products: in half precision it would push small probabilities below the smallest
        # number there is.
        x_hat_gradient = torch.zeros_like(x)
        of_target = -missing * slope
        for low, high, centers, cosine in self._tiles(x_hat, rows, step, kept):
            coefficient = self._coefficients(cosine, log_z, of_target, rows.column - low)
            x_hat_gradient += (coefficient @ centers.to(self.product_dtype)).float()
            gradient = (coefficient.T @ x_hat).float() / len(x)
            self._update(rows, low, high, self._weight_gradient(gradient, rows, low, high, step), lr, finite)
        own = slice(self.ranks.rank * len(embedding), (self.ranks.rank + 1) * len(embedding))
        gradient = unit_gradient(reduce_scatter_rows(x_hat_gradient, self.ranks) / len(x), x[own])
        return HeadStep(loss, gradient, finite, x, label)

    @torch.no_grad()
    def remember(self, result: HeadStep, momentum_embedding: Tensor | None, step: int, good: Tensor) -> None:
        """Write this step's samples into the memory, after everything that reads it.

        momentum_embedding: [b, d] of this rank, where the injection asks for it.  good: boolean scalar on the device,
        the same on all ranks; False writes nothing.
        """
        if self.memory is None:
            return
        inject = self.settings.inject
        sources = {"online": result.embedding}
        if momentum_embedding is not None:
            sources["momentum"] = gather_rows(momentum_embedding.float(), self.ranks)
        norm = torch.linalg.vector_norm(sources[getattr(inject, "norm_source", inject.source)], dim=1)
        self.memory.write(sources[inject.source], norm, result.label - self.start, step, good)

    def injection_figures(self, step: int) -> dict[str, float]:
        """What injection does, for the log, over all ranks; empty without it. A collective: all ranks call it.

        norm_mean, norm_deviation: μ and σ.  unrecognizable, unusable: shares of the last batch with f = 0, and with an
        embedding that is zero or not finite.  mean_weight: of the others.  fresh: share of all classes;
        memory_ratio: mean ‖λM‖/‖Ŵ‖ and center_angle: mean degrees from Ŵ to W̃, over fresh classes.
        injected_positives: share of the last batch whose own class was injected.
        """
        if self.memory is None:
            return {}
        last = torch.stack([self.memory.injected.double(), *self.memory.totals(self.weight, step)])
        injected, fresh, ratio, angle, rows = sum_over_ranks(last, self.ranks).tolist()
        samples, unrecognizable, unusable, weight = self.memory.seen.tolist()
        figures = {
            "unrecognizable": unrecognizable / max(samples, 1),
            "unusable": unusable / max(samples, 1),
            "mean_weight": weight / max(samples - unrecognizable - unusable, 1),
            "fresh": fresh / max(rows, 1),
            "memory_ratio": ratio / max(fresh, 1),
            "center_angle": angle / max(fresh, 1),
            "injected_positives": injected / max(samples, 1),
        }
        mean, deviation, _ = self.memory.statistics.tolist()
        return {"norm_mean": mean, "norm_deviation": deviation, **figures}

    def _first_pass(self, x_hat: Tensor, rows: Rows, step: int) -> tuple[Tensor, Tensor, Tensor, _Tile | None]:
        """Per sample over all ranks: Σ_j≠y exp(logit_j − peak), peak, target cosine, each [B]; and a tile to keep."""
        s = self.settings.margin.s
        sums = x_hat.new_zeros((len(x_hat), 2), dtype=torch.float32)
        peak = sums.new_zeros(len(x_hat)) if s <= SAFE_LOGIT else self._peak(x_hat, rows, step)
        kept = None
        for tile in self._tiles(x_hat, rows, step):
            low, high, _, cosine = tile
            mine, column = _targets_in(rows.column - low, high - low)
            sums[:, 1] += torch.where(mine, cosine.gather(1, column).squeeze(1), 0)
            sums[:, 0] += _replaced(torch.exp(cosine * s - peak[:, None]), mine, column, 0).sum(dim=1)
            kept = tile if high - low == rows.count else None
        sum_over_ranks(sums, self.ranks)
        return sums[:, 0], peak, sums[:, 1], kept

    def _peak(self, x_hat: Tensor, rows: Rows, step: int) -> Tensor:
        """Largest logit of a negative over all ranks, [B]."""
        peak = x_hat.new_full((len(x_hat),), -self.settings.margin.s, dtype=torch.float32)
        for low, high, _, cosine in self._tiles(x_hat, rows, step):
            negative = _replaced(cosine, *_targets_in(rows.column - low, high - low), -1)
            peak = torch.maximum(peak, negative.amax(dim=1) * self.settings.margin.s)
        return max_over_ranks(peak, self.ranks)

    def _tiles(self, x_hat: Tensor, rows: Rows, step: int, kept: _Tile | None = None) -> Iterator[_Tile]:
        """Tiles of the rows used: low, high, effective centres [T, d], cosine [B, T]; just `kept` when there is one."""
        if kept is not None:
            yield kept
            return
        tile = max(1, self.settings.logit_bytes // (8 * len(x_hat)))
        for low in range(0, rows.count, tile):
            high = min(low + tile, rows.count)
            weight = self._weight_rows(rows, low, high)
            if self.memory is None:
                centers = unit(weight)
            else:
                where = rows.tile(low, high)
                centers = effective_centers(
                    weight, self.memory.rows[where], self.memory.fresh(where, step), self.settings.inject
                )
            cosine = x_hat @ centers.to(self.product_dtype).T
            yield low, high, centers, cosine.float().clamp_(-1, 1)

    def _coefficients(self, cosine: Tensor, log_z: Tensor, of_target: Tensor, column: Tensor) -> Tensor:
        """B·∂loss/∂cosine of one tile, [B, T] in product_dtype: p_j·s for negatives, `of_target` for targets."""
        s = self.settings.margin.s
        negative = cosine.mul(s).sub_(log_z[:, None]).exp_().mul_(s)
        mine, column = _targets_in(column, cosine.shape[1])
        return _replaced(negative, mine, column, of_target).to(self.product_dtype)

    def _weight_gradient(self, gradient: Tensor, rows: Rows, low: int, high: int, step: int) -> Tensor:
        """∂loss/∂W of a tile from that by its effective centres, both [T, d] float32."""
        weight = self._weight_rows(rows, low, high)
        if self.memory is None:
            return unit_gradient(gradient, weight)
        where = rows.tile(low, high)
        fresh = self.memory.fresh(where, step)
        return effective_gradient(gradient, weight, self.memory.rows[where], fresh, self.settings.inject)

    def _weight_rows(self, rows: Rows, low: int, high: int) -> Tensor:
        return self.weight[rows.tile(low, high)]

    def _update(self, rows: Rows, low: int, high: int, gradient: Tensor, lr: float, finite: Tensor) -> None:
        where = rows.tile(low, high)
        weight, velocity = self.weight[where], self.velocity[where]
        self.optimizer.update(weight, velocity, gradient, lr * self.settings.lr_scale, finite)
        if rows.index is not None:  # indexing by a tensor copied them; a slice is a view
            self.weight[where], self.velocity[where] = weight, velocity


def _targets_in(column: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Whether each sample's target lies in a tile of `width` rows, boolean [B], and a valid column [B, 1] there.

    Fixed shapes: the host never has to know how many there are.
    """
    return (column >= 0) & (column < width), column.clamp(0, width - 1)[:, None]


def _replaced(x: Tensor, mine: Tensor, column: Tensor, value: Tensor | float) -> Tensor:
    """`x` [B, T] with `value` at the targets, in place: elsewhere the old element is written back."""
    old = x.gather(1, column).squeeze(1)
    return x.scatter_(1, column, torch.where(mine, value, old)[:, None])
