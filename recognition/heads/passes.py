"""The two passes of a step over the classes that a rank uses, tile by tile: sums of the negatives, then gradients.

Neither [N, k] logits nor a [k, d] gradient exists, only a tile of T classes at a time. Pass 2 computes a tile's cosines
anew, but for those that pass 1 could keep within the budget. Targets are left out inside the tile; subtracting them
afterwards would cancel. The matrix products' factors may be half precision; everything else is float32 (float64 in
tests).

Shapes: N samples that the centres learn from, the batch's B last; d embedding size; k classes used on this rank, T of a
tile, K centres a class (1 but for sub-centres).
Proven by tests/recognition/heads/test_sharded.py, tests/recognition/heads/test_head_parity.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from recognition.distributed import Ranks, max_over_ranks
from recognition.heads.margins import SAFE_LOGIT, Batch, Margin
from recognition.heads.sampling import Rows
from recognition.heads.shard import Centers, Shard
from recognition.memory import mix_gradient

HALF_MAX = 65504.0
"""Largest number of float16."""


@dataclass
class Step:
    """What the passes over the classes of one step share.

    x_hat: [N, d] unit length.  factor: the same in the products' dtype.  rows: of this shard.  number: of the step.
    batch: for the margin; its cosines are whole once they were reduced.
    form: effective centres are formed even where they are plain unit vectors.
    kept: tiles' cosines that need not be computed again, by their first class; `room` bytes are left for more.
    inverse: tiles' 1/‖W‖, likewise.
    """

    x_hat: Tensor
    factor: Tensor
    rows: Rows
    number: int
    batch: Batch
    room: int
    form: bool
    kept: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    inverse: dict[int, Tensor] = field(default_factory=dict)


class Tile(NamedTuple):
    """Classes [low, high) of those used. cosine: [N, T]; which: [N, T], the nearest of a class's K centres."""

    low: int
    high: int
    centers: Centers
    cosine: Tensor
    which: Tensor | None


class Terms(NamedTuple):
    """Of each sample [N]: its loss, N·∂loss/∂(target cosine), N·∂loss/∂‖x‖ (None: 0), log Σ exp of all its logits.

    log_z is None for losses without a softmax; there bias is N·∂loss/∂bias.  counts: 0 for samples that do not count,
    whose other terms are 0 already; None: all do.
    """

    loss: Tensor
    of_target: Tensor
    of_norm: Tensor | None
    log_z: Tensor | None
    bias: Tensor | None
    counts: Tensor | None = None

    def only(self, counts: Tensor) -> "Terms":
        """The terms with those of samples that do not count at 0; counts: [N] of 0 and 1."""
        scaled = {name: value * counts for name in ("loss", "of_target", "of_norm", "bias")
                  if (value := getattr(self, name)) is not None}
        return self._replace(**scaled, counts=counts)


@dataclass(frozen=True)
class TiledPasses:
    """The passes over one shard. tile_bytes: memory for tiles, and as much for kept cosines.

    ignore_above: negatives with a larger cosine are none; None: all are.
    """

    shard: Shard
    margin: Margin
    ranks: Ranks
    dtype: torch.dtype
    product_dtype: torch.dtype
    tile_bytes: int
    ignore_above: float | None

    def sums(self, at: Step, over_all: bool = False) -> tuple[Tensor, Tensor]:
        """What this shard's negatives add up to, [N, 1], and the peak [N] that the logits were reduced by.

        Σ exp(logit − peak), the peak already that of all ranks; or for binary losses, [N, 2], Σ w·softplus(v) and
        Σ w·σ(v).  over_all: weigh the classes that were drawn so that the sum stands for all classes.
        """
        margin, binary = self.margin, self.margin.binary
        sums = at.x_hat.new_zeros(len(at.x_hat), 2 if binary else 1)
        running = not binary and margin.largest_negative() > SAFE_LOGIT
        peak = torch.full_like(sums[:, 0], torch.finfo(sums.dtype).min / 2 if running else 0)
        for tile in self._tiles(at, keep=True):
            logit, _ = self._negatives(tile, at)
            weight = self._stand_for(at.rows, tile) if over_all or binary else 1
            if binary:
                sums[:, 0] += (softplus(logit) * weight).sum(dim=1)
                sums[:, 1] += (torch.sigmoid(logit) * weight).sum(dim=1)
                continue
            if running:
                higher = torch.maximum(peak, logit.amax(dim=1))
                sums[:, 0] *= torch.exp(peak - higher)
                logit -= higher[:, None]
                peak = higher
            sums[:, 0] += (logit.exp_() * weight).sum(dim=1)
        if running:
            highest = max_over_ranks(peak.clone(), self.ranks)
            sums[:, 0] *= torch.exp(peak - highest)
            peak = highest
        return sums, peak

    def gradients(
        self, at: Step, terms: Terms, counted: Tensor | None, batch: int, lr: float, finite: Tensor
    ) -> Tensor:
        """Train the rows used; this shard's part of B·∂loss/∂x̂ of the batch's samples, [B, d].

        counted: [N] of 0 and 1, the samples over which the centres' loss is the mean, None for all.
        finite: False changes no row, to the bit.
        """
        total = torch.zeros_like(at.x_hat[-batch:])
        number = batch if counted is None else counted.sum()
        counted = counted if counted is None else counted.to(self.product_dtype)
        for tile in self._tiles(at, keep=False):
            coefficient = self._coefficients(tile, at, terms)
            if tile.centers.effective is None:
                gradient = _through_lengths(coefficient, tile, at.factor, total)
            else:
                coefficient = coefficient.to(self.product_dtype)
                total += product(coefficient[-batch:], tile.centers.effective.to(self.product_dtype))
                gradient = product((coefficient if counted is None else coefficient * counted[:, None]).T, at.factor)
                gradient = self.shard.weight_gradient(tile.centers, gradient.div_(number))
            self.shard.update(tile.centers, gradient, lr, at.number, finite)
        return total

    def _tiles(self, at: Step, keep: bool) -> Iterator[Tile]:
        """All tiles of the classes used; keep: their cosines are wanted again, in a later pass."""
        size, per_class = at.x_hat.shape[1], self.shard.per_class
        injects = self.shard.injects(at.number)
        width = max(1, self.tile_bytes // class_bytes(len(at.x_hat), size, per_class, self.dtype.itemsize, injects))
        for low in range(0, at.rows.count, width):
            high = min(low + width, at.rows.count)
            centers = self.shard.read(at.rows.tile(low, high), at.number, at.form, at.inverse.get(low))
            at.inverse[low] = centers.inverse
            found = at.kept.get(low)
            if found is None:
                found = self._cosines(at.factor, centers)
                needed = sum(part.nbytes for part in found if part is not None)
                if keep and needed <= at.room:
                    at.kept[low] = found
                    at.room -= needed
            yield Tile(low, high, centers, *found)

    def _cosines(self, factor: Tensor, centers: Centers) -> tuple[Tensor, Tensor | None]:
        if centers.effective is None:
            cosine = product(factor, centers.weight.T).mul_(centers.inverse.T).clamp_(-1, 1)
            if centers.mixed is not None:
                cosine[:, centers.mixed.at] = product(factor, centers.mixed.effective.T).clamp_(-1, 1)
            return cosine, None
        cosine = product(factor, centers.effective.to(self.product_dtype).T).clamp_(-1, 1)
        if self.shard.per_class == 1:
            return cosine, None
        nearest = cosine.view(len(factor), -1, self.shard.per_class).max(dim=2)
        return nearest.values, nearest.indices

    def _negatives(self, tile: Tile, at: Step) -> tuple[Tensor, Tensor | float]:
        """Logits of a tile's negatives [N, T], −∞ for what is none, and their slopes by the cosine."""
        logit, slope = self.margin.negative(tile.cosine, at.batch)
        mine, column = _targets_in(at.rows.column - tile.low, tile.high - tile.low)
        _replace(logit, mine, column, -torch.inf)
        if self.ignore_above is not None:
            logit.masked_fill_(tile.cosine > self.ignore_above, -torch.inf)
        return logit, slope

    def _stand_for(self, rows: Rows, tile: Tile) -> Tensor | float:
        """How many classes each of a tile's stands for in a sum over all of them, [T]."""
        return 1.0 if rows.weight is None else rows.weight[tile.low : tile.high].to(self.dtype)

    def _coefficients(self, tile: Tile, at: Step, terms: Terms) -> Tensor:
        """N·∂loss/∂cosine of one tile's centres, [N, T·K]: p_j·slope for negatives, `of_target` for targets.

        1/N is left to the float32 sums: in half precision it would push small probabilities below the smallest number
        there is.
        """
        logit, slope = self._negatives(tile, at)
        if terms.log_z is not None:
            coefficient = logit.sub_(terms.log_z[:, None]).exp_().mul_(slope)
        else:
            coefficient = torch.sigmoid_(logit).mul_(slope).mul_(self.margin.negative_weight)
            coefficient.mul_(self._stand_for(at.rows, tile))
        _replace(coefficient, *_targets_in(at.rows.column - tile.low, tile.high - tile.low), terms.of_target)
        if terms.counts is not None:
            coefficient *= terms.counts[:, None]
        if self.product_dtype == torch.float16:
            coefficient.clamp_(-HALF_MAX, HALF_MAX)
        if tile.which is None:
            return coefficient
        spread = coefficient.new_zeros(*coefficient.shape, self.shard.per_class)
        return spread.scatter_(2, tile.which[..., None], coefficient[..., None]).flatten(1)


def _through_lengths(coefficient: Tensor, tile: Tile, x_hat: Tensor, total: Tensor) -> Tensor:
    """∂loss/∂W of a tile of plain centres, W̃ = W/‖W‖ not formed; adds the tile's part of B·∂loss/∂x̂ to `total`.

    With a = 1/‖W_j‖ and r_j = Σ_i coefficient_ij·c_ij / B the gradient's part along Ŵ_j:
    ∂loss/∂W_j = a·(Σ_i coefficient_ij·x̂_i / B − r_j·Ŵ_j). coefficient: [B, T], used up. Rows that memory is mixed into
    go through their W̃ instead.
    """
    weight, inverse, mixed = tile.centers.weight, tile.centers.inverse, tile.centers.mixed
    if mixed is not None:
        theirs = coefficient[:, mixed.at]
        coefficient[:, mixed.at] = 0
        total.addmm_(theirs, mixed.effective)
    radial = torch.linalg.vecdot(coefficient, tile.cosine, dim=0).div_(len(x_hat))
    coefficient.mul_(inverse.T)
    total.addmm_(coefficient, weight)
    gradient = torch.mm(coefficient.T, x_hat / len(x_hat))
    gradient.addcmul_(weight, radial[:, None] * inverse.square(), value=-1)
    if mixed is not None:
        gradient[mixed.at] = mix_gradient(torch.mm(theirs.T, x_hat / len(x_hat)), weight[mixed.at], inverse[mixed.at],
                                          mixed.effective, mixed.reach)
    return gradient


def class_bytes(samples: int, size: int, per_class: int = 1, itemsize: int = 4, injects: bool = False) -> int:
    """Memory that one class of a tile takes at the peak: some rows of its size, and some columns of cosines."""
    return itemsize * ((1 + 3 * per_class) * samples + (8 if injects else 6) * size * per_class)


def product(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product whose factors may be half precision, summed and returned in float32 (float64 stays)."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), x itself from 40 on, where the two are the same number in float64 as well."""
    return torch.nn.functional.softplus(x, threshold=40)


def _targets_in(column: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Whether each sample's target lies in a tile of `width` classes, boolean [N], and a valid column [N, 1] there.

    Fixed shapes: the host never has to know how many there are.
    """
    return (column >= 0) & (column < width), column.clamp(0, width - 1)[:, None]


def _replace(x: Tensor, mine: Tensor, column: Tensor, value: Tensor | float) -> None:
    """Put `value` at the targets of `x` [N, T]; elsewhere the old element is written back."""
    old = x.gather(1, column).squeeze(1)
    x.scatter_(1, column, torch.where(mine, value, old)[:, None])
