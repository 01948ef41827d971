"""The sharded head: class centres split over ranks, a tiled loss, and its gradients, in one call a step.

The head is no link of the autograd graph. `step` gathers the embeddings, picks the classes of this step, forms their
effective centres tile by tile, computes the loss over all ranks' classes, updates the centres it used and returns this
rank's part of the embedding gradient, which the caller sends through the backbone.

Shapes: b rows a rank, B = R·b in the global batch, N samples that the centres learn from (B, and BroadFace's past
ones), d embedding size, C classes, C_r of them on this rank, k of them used in this step, T classes of one tile, K
centres a class (1 but for sub-centres).

Two passes over tiles of classes, so that neither [B, k] logits nor a [k, d] gradient has to exist (passes.py; fused.py
on CUDA where it can):
  1. cosines → Σ_j≠y of a sample's negatives; one all-reduce of [N, 2] joins them over ranks, with the target's cosine
     beside it;
  2. cosines again → coefficients ∂L/∂cosine → embedding gradient (summed over tiles and ranks) and the tile's centre
     gradient, applied to the tile's rows on the spot.

The unit vectors bound the logits. Up to 70 their exponentials fit float32 without a running maximum; above, each sample
keeps one (and one more all-reduce of [N]). Margins whose negatives depend on all target cosines take one all-reduce of
[N] before the sums; AdaCos one more pass. docs/heads.md has the list. The host waits for the device nowhere.
Proven by tests/recognition/heads/test_sharded.py and, every margin against a dense float64 head on 1, 2 and 4
processes, test_head_parity.py beside it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from recognition.distributed import Arriving, Ranks, gather_rows_later, reduce_scatter_rows, sum_over_ranks
from recognition.heads import fused
from recognition.heads.broadface import PastEmbeddings
from recognition.heads.fused_passes import FusedPasses
from recognition.heads.margins import Batch, Margin, target_logit
from recognition.heads.passes import Step, Terms, TiledPasses, softplus
from recognition.heads.row_optimizers import RowOptimizer, RowSGD
from recognition.heads.sampling import Rows, pick_rows
from recognition.heads.shard import Shard
from recognition.heads.subcenters import Dominance
from recognition.memory import Injection, Memory
from recognition.streams import torch_seed
from recognition.vectors import unit, unit_gradient

_NEGATIVES = 0x6E656761746976  # keeps these uses of a seed apart from others
_DRAWS = 0x6472617773

TILE_BYTES = {"cpu": 3 << 23, "cuda": 1 << 28}
"""Default of `tile_bytes` by kind of device."""


@dataclass(frozen=True)
class HeadSettings:
    """How the classes are learnt.

    sample_rate: share of each shard's classes that a step uses; the classes present in the batch always are.
    optimizer: of the centres' rows.  lr_scale: their learning rate over the backbone's.
    catch_up_decay: a row makes up for the weight decay of the steps that did not use it.
    storage: of centres, their optimiser's rows and the memory; bf16 is rounded stochastically.
    inject: what is mixed into the centres.  ignore_above: negatives with a larger cosine are taken for the same person
    under another label and left out (none: no negative is).
    tile_bytes: memory that a step may take for tiles and kept cosines, each; 0: 24 MiB on a CPU, 256 MiB on a GPU.
    """

    margin: Margin
    sample_rate: float = 1.0
    optimizer: RowOptimizer = RowSGD()  # noqa: RUF009 (frozen)
    lr_scale: float = 1.0
    catch_up_decay: bool = False
    storage: Literal["fp32", "bf16"] = "fp32"
    inject: Injection = Injection()  # noqa: RUF009 (frozen)
    ignore_above: float | None = None
    tile_bytes: int = 0


class HeadStep(NamedTuple):
    """What one step of the head gives back.

    loss: scalar float32, the mean over the global batch, the same on all ranks.
    embedding_gradient: [b, d] float32, ∂loss/∂embedding of this rank's rows (it carries 1/B).
    finite: boolean scalar on the device, the same on all ranks. False: nothing was changed.
    embedding, label: the global batch, [B, d] float32 and [B] int64, for `remember`.
    """

    loss: Tensor
    embedding_gradient: Tensor
    finite: Tensor
    embedding: Tensor
    label: Tensor


class ShardedHead:
    """One rank's share of the classes: centres, what is remembered of them, and the step that trains them.

    product_dtype: of the matrix products' factors; they are summed, and all else is computed, in `dtype`.
    batch_size, start_step: of the run, for injection's age in samples and for when it starts.
    steps_per_epoch: for settings that count in epochs.
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
        steps_per_epoch: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        margin = settings.margin
        self.settings, self.margin = settings, margin
        self.ranks, self.seed = ranks, seed
        self.dtype, self.product_dtype = dtype, torch.float64 if dtype == torch.float64 else product_dtype
        stored = torch.bfloat16 if settings.storage == "bf16" else dtype
        self.shard = Shard(num_classes, embedding_size, margin.centers_per_class, ranks, seed, settings.optimizer,
                           stored, dtype, settings.catch_up_decay)
        if settings.inject.is_on:
            self.shard.inject(settings.inject, batch_size, start_step)
        initial = margin.initial_state(num_classes)
        self.margin_state = {name: torch.tensor(v, dtype=dtype, device=ranks.device) for name, v in initial.items()}
        self.bias_velocity = torch.zeros((), dtype=dtype, device=ranks.device)
        queue = getattr(margin, "queue", 0)
        self.past = PastEmbeddings(queue, embedding_size, ranks, dtype) if queue else None
        self.dominance = Dominance.of(margin, self.shard.classes, ranks, steps_per_epoch)
        kind = FusedPasses if self._may_fuse() else TiledPasses
        self.passes = kind(
            self.shard, margin, ranks, dtype, self.product_dtype,
            settings.tile_bytes or TILE_BYTES[ranks.device.type], settings.ignore_above,
        )

    def _may_fuse(self) -> bool:
        """Whether the CUDA kernels know all that these settings ask for."""
        settings = self.settings
        special = settings.ignore_above is not None or settings.catch_up_decay or self.dominance
        return not special and fused.usable(
            settings.margin, settings.optimizer, self.ranks.device, self.product_dtype, self.weight.dtype
        )

    @property
    def start(self) -> int:
        """First class of this rank."""
        return self.shard.start

    @property
    def stop(self) -> int:
        """One past the last class of this rank."""
        return self.shard.stop

    @property
    def weight(self) -> Tensor:
        """[C_r·K, d], as stored."""
        return self.shard.weight

    @property
    def memory(self) -> Memory | None:
        """What is remembered of the classes; None without injection."""
        return self.shard.memory

    def state(self) -> dict[str, Tensor]:
        """The tensors whose row j belongs to class start + j: what a checkpoint stores and another sharding cuts."""
        tensors = self.shard.tensors()
        return tensors if self.dominance is None else tensors | {"chosen": self.dominance.chosen}

    def replicated(self) -> dict[str, Tensor]:
        """The tensors of the margin that are the same on all ranks; the memory has its own (`Memory.statistics`)."""
        learnt = {"bias_velocity": self.bias_velocity} if self.margin.binary else {}
        return self.margin_state | learnt | ({} if self.past is None else self.past.state())

    def rows(self, label: Tensor, step: int) -> Rows:
        """The classes of this step for the global batch's labels [B]: a function of (seed, step, rank, labels)."""
        generator = self._generator(_NEGATIVES, step, self.ranks.rank)
        return pick_rows(label - self.start, self.shard.classes, self.settings.sample_rate, generator)

    def draws(self, step: int, count: int) -> Tensor:
        """A standard normal number for each row of the global batch, [count], the same on all ranks."""
        return torch.randn(count, generator=self._generator(_DRAWS, step), device=self.ranks.device, dtype=self.dtype)

    def _generator(self, *key: int) -> torch.Generator:
        generator = torch.Generator(self.ranks.device)
        generator.manual_seed(torch_seed(key[0], self.seed, *key[1:]))
        return generator

    def send(self, rows: Tensor) -> Arriving:
        """Begin to gather rows [b, …] of the global batch, for `step` and `remember`; they must stay as they are."""
        return gather_rows_later(rows.detach(), self.ranks)

    @torch.no_grad()
    def step(
        self, embedding: Tensor, label: Tensor, step: int, lr: float, sent: tuple[Arriving, Arriving] | None = None
    ) -> HeadStep:
        """Loss and embedding gradient of this step; updates the centres that it used.

        embedding: [b, d] raw (not unit length), any float type.  label: [b] int64 in [0, C).
        step: number of this optimiser step, counted from 0.  lr: learning rate of the backbone.
        sent: what `send` gave for both; None: they are sent here.
        """
        arriving = sent or (self.send(embedding), self.send(label))
        x, label = arriving[0].rows.to(self.dtype), arriving[1].rows
        samples, labels, counted = x, label, None
        if self.past is not None:
            samples, labels, counted = self.past.join(x, label, self.shard, self.ranks)
        self.shard.begin(step)
        at = self._begin(samples, labels, step)
        reduced, sums, peak = self._reduced(at, labels)
        terms = self._terms(at, sums, peak)
        if self.dominance is not None:
            terms = terms.only(reduced[:, 1])
        finite = torch.isfinite(terms.loss).all() & torch.isfinite(terms.of_target).all()

        centers_lr = lr * self.settings.lr_scale
        x_hat_gradient = self.passes.gradients(at, terms, counted, len(x), centers_lr, finite)
        self._commit(at, terms, x, label, lr, finite)
        own = slice(self.ranks.rank * len(embedding), (self.ranks.rank + 1) * len(embedding))
        gradient = unit_gradient(reduce_scatter_rows(x_hat_gradient, self.ranks), x[own])
        if terms.of_norm is not None:
            gradient += terms.of_norm[-len(x) :][own, None] * at.x_hat[-len(x) :][own]
        return HeadStep(terms.loss[-len(x) :].mean(), gradient / len(x), finite, x, label)

    @torch.no_grad()
    def remember(
        self, result: HeadStep, momentum_embedding: Tensor | Arriving | None, step: int, good: Tensor
    ) -> None:
        """Write this step's samples into the memory, after everything that reads it.

        momentum_embedding: [b, d] of this rank, where the injection asks for it, or what `send` gave for it in
        float32.  good: boolean scalar on the device,
        the same on all ranks; False writes nothing.
        """
        if self.memory is None:
            return
        inject = self.settings.inject
        sources = {"online": result.embedding}
        if momentum_embedding is not None:
            sent = momentum_embedding
            sources["momentum"] = (sent if isinstance(sent, Arriving) else self.send(sent.float())).rows
        norm = torch.linalg.vector_norm(sources[getattr(inject, "norm_source", inject.source)], dim=1)
        self.memory.write(sources[inject.source], norm, result.label - self.start, step, good)

    def injection_figures(self, step: int) -> dict[str, float]:
        """What injection does, for the log, over all ranks; empty without it. A collective: all ranks call it."""
        return {} if self.memory is None else self.memory.figures(self.weight, step, self.ranks)

    def _begin(self, samples: Tensor, labels: Tensor, step: int) -> Step:
        x_hat, rows = unit(samples), self.rows(labels, step)
        normal = self.draws(step, len(samples)) if self.margin.draws else None
        cosine = torch.zeros_like(samples[:, 0])
        batch = Batch(cosine, torch.linalg.vector_norm(samples, dim=1), normal, self.margin_state)
        form = self.product_dtype != self.dtype or self.shard.per_class > 1 or self.past is not None
        return Step(x_hat, x_hat.to(self.product_dtype), rows, step, batch, self.passes.tile_bytes, form)

    def _reduced(self, at: Step, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Over all ranks: target cosines (and what `Dominance` counts) [N, 1 or 2], the negatives' sums, their peak.

        Leaves in `at` the batch with these cosines and the margin's state of this step.
        """
        of_targets = self._targets(at, labels)
        if self.margin.needs_targets:
            sum_over_ranks(of_targets, self.ranks)
            at.batch = self._advanced(at, of_targets[:, 0])
            sums, peak = self.passes.sums(at)
            return of_targets, sum_over_ranks(sums, self.ranks), peak
        sums, peak = self.passes.sums(at)
        both = sum_over_ranks(torch.cat([of_targets, sums], dim=1), self.ranks)
        of_targets, sums = both.split([of_targets.shape[1], sums.shape[1]], dim=1)
        at.batch = self._advanced(at, of_targets[:, 0])
        return of_targets, sums, peak

    def _targets(self, at: Step, labels: Tensor) -> Tensor:
        """This rank's part of the target cosines, 0 where another rank owns the class; [N, 1], with counts [N, 2]."""
        if not self.shard.classes:
            return at.x_hat.new_zeros(len(labels), 1 + (self.dominance is not None))
        row, owned = self.shard.locate(labels)
        effective = self.shard.read(row, at.number).effective
        assert effective is not None
        every = torch.linalg.vecdot(at.x_hat[:, None], effective.view(len(row), -1, at.x_hat.shape[1]))
        cosine, which = every.max(dim=1)
        columns = [cosine]
        if self.dominance is not None:
            columns.append(self.dominance.counts(every, which, row, owned, at.number))
        return torch.where(owned[:, None], torch.stack(columns, dim=1), 0)

    def _advanced(self, at: Step, cosine: Tensor) -> Batch:
        """The batch with reduced target cosines [N] and the margin's state of this step."""
        before = at.batch._replace(cosine=cosine.clamp(-1, 1))
        sums = None
        if self.margin.needs_sums:
            sums = sum_over_ranks(self.passes.sums(at, over_all=True)[0], self.ranks)[:, 0]
        return before._replace(state=self.margin.advance(before.state, before, sums))

    def _terms(self, at: Step, sums: Tensor, peak: Tensor) -> Terms:
        """Loss of each sample and its derivatives, from the reduced sums."""
        margin = self.margin
        logit, slope, by_norm = target_logit(at.batch.cosine, margin, at.batch)
        if margin.binary:
            wrong = margin.positive_weight * torch.sigmoid(-logit)
            loss = margin.positive_weight * softplus(-logit) + margin.negative_weight * sums[:, 0]
            bias = margin.bias_slope * (margin.negative_weight * sums[:, 1] - wrong)
            return Terms(loss, -wrong * slope, None, None, bias)
        # log Σ over negatives; −inf where a sample has none.
        log_others = sums[:, 0].log() + peak
        # 1 − p of the target, without the cancellation of 1 − exp(logit − log Z).
        missing = torch.sigmoid(log_others - logit)
        loss = softplus(log_others - logit)
        of_norm = None if by_norm is None else -missing * by_norm
        with torch.enable_grad():
            norm = at.batch.norm.detach().requires_grad_()
            extra = margin.regularizer(norm)
            if extra is not None:
                (slope_of_extra,) = torch.autograd.grad(extra.sum(), norm)
                loss = loss + extra.detach()
                of_norm = slope_of_extra if of_norm is None else of_norm + slope_of_extra
        return Terms(loss, -missing * slope, of_norm, torch.logaddexp(log_others, logit), None)

    def _commit(self, at: Step, terms: Terms, x: Tensor, label: Tensor, lr: float, finite: Tensor) -> None:
        """Everything of the head that a step changes besides its rows; `finite` False changes nothing."""
        state = dict(at.batch.state)
        if terms.bias is not None:
            momentum = getattr(self.settings.optimizer, "momentum", 0.0)
            velocity = momentum * self.bias_velocity + terms.bias.mean()
            state["bias"] = state["bias"] - lr * self.settings.lr_scale * velocity
            torch.where(finite, velocity, self.bias_velocity, out=self.bias_velocity)
        for name, value in state.items():
            torch.where(finite, value, self.margin_state[name], out=self.margin_state[name])
        self.shard.mark_used(slice(None) if at.rows.index is None else at.rows.index, at.number, finite)
        if self.dominance is not None:
            self.dominance.commit(finite)
        if self.past is not None:
            self.past.push(x, label, finite)
