"""What the sharded head is measured against: Partial FC as it is usually written, and full softmax.

Everything the sharded head does without is here: unit centres of all rows, logits [B, k] and their gradient, a dense
gradient of the centres, one collective each for maximum, sum and target. Written to be as fast as that scheme allows
in plain torch operations: no one-hot matrix, no arccos over all logits, no host synchronisation beyond finding the
rows. An, Zhu, Deng et al., Partial FC, 2021 and 2022 (sampling, softmax over ranks).

Convention: B rows of the global batch, C_r classes of this rank, k rows used, d embedding size; label −1 is a class of
another rank. Margins' gradients are those of autograd, without the bounds near |c| = 1 that the sharded head has.
Proven by tests/benchmarks/test_baseline_head.py: the same losses and gradients as the sharded head's.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recognition.distributed import Ranks, gather_rows, max_over_ranks, reduce_scatter_rows, sum_over_ranks
from recognition.heads.centers import shard_range


def arcface(cosine: Tensor, row: Tensor, column: Tensor, s: float = 64.0, m: float = 0.5) -> Tensor:
    """Logits [B, k]: s·cos(θ + m) at the targets (row, column), past π − m s·(c − m·sin m); s·c elsewhere."""
    c = cosine[row, column]
    shifted = c * math.cos(m) - (1 - c * c).sqrt() * math.sin(m)
    cosine[row, column] = torch.where(c > math.cos(math.pi - m), shifted, c - m * math.sin(m))
    return cosine * s


def cosface(cosine: Tensor, row: Tensor, column: Tensor, s: float = 64.0, m: float = 0.4) -> Tensor:
    """Logits [B, k]: s·(c − m) at the targets (row, column), s·c elsewhere."""
    cosine[row, column] = cosine[row, column] - m
    return cosine * s


MARGINS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"arcface": arcface, "cosface": cosface}


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return gather_rows(x, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return reduce_scatter_rows(gradients[0], ctx.ranks), None


class _ShardedCrossEntropy(torch.autograd.Function):
    """Mean −log softmax of the target over the global batch, from this rank's logits [B, k], which it overwrites."""

    @staticmethod
    def forward(ctx: Any, logit: Tensor, row: Tensor, column: Tensor, ranks: Ranks) -> Tensor:
        peak = max_over_ranks(logit.amax(dim=1, keepdim=True), ranks)
        probability = logit.sub_(peak).exp_()
        probability.div_(sum_over_ranks(probability.sum(dim=1, keepdim=True), ranks))
        target = logit.new_zeros(len(logit))
        target[row] = probability[row, column]
        sum_over_ranks(target, ranks)
        ctx.save_for_backward(probability, row, column)
        return -target.clamp_min_(1e-30).log_().mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        probability, row, column = ctx.saved_tensors
        probability[row, column] -= 1
        return probability.div_(len(probability)) * gradients[0], None, None, None


class PartialFC:
    """One rank's share of the classes, their SGD, and the step that trains them, by autograd.

    weight, momentum: [C_r, d] float32, trained in place.  margin: a name in MARGINS.
    sampled_update: "rows" copies the sampled rows of weight and momentum out, lets SGD see those alone and writes them
    back; "dense" lets autograd scatter their gradient into [C_r, d] and SGD update all centres, those not sampled too.
    """

    def __init__(
        self,
        weight: Tensor,
        num_classes: int,
        margin: str = "arcface",
        ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
        *,
        momentum: Tensor | None = None,
        sample_rate: float = 1.0,
        sampled_update: Literal["rows", "dense"] = "rows",
        sgd_momentum: float = 0.9,
        weight_decay: float = 5e-4,
        product_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.ranks = ranks
        self.start, self.stop = shard_range(num_classes, ranks.rank, ranks.world_size)
        self.weight = nn.Parameter(weight)
        self.momentum = torch.zeros_like(weight) if momentum is None else momentum
        self.margin = MARGINS[margin]
        self.num_sampled = int(sample_rate * len(weight))
        self.copies_rows = self.num_sampled < len(weight) and sampled_update == "rows"
        self.product_dtype = product_dtype
        self.sgd = torch.optim.SGD([self.weight], lr=0.0, momentum=sgd_momentum, weight_decay=weight_decay)
        self._train(self.weight, self.momentum)

    def step(self, embedding: Tensor, label: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Loss over the global batch and its gradient by this rank's embedding [b, d]; updates the centres.

        embedding: [b, d].  label: [b] int64 in [0, C).  lr: learning rate of the centres.
        """
        embedding = embedding.detach().requires_grad_()
        loss, weight, index = self.loss(embedding, label)
        loss.backward()
        self.sgd.param_groups[0]["lr"] = lr
        self.sgd.step()
        self.sgd.zero_grad()
        if self.copies_rows:
            with torch.no_grad():
                self.weight[index] = weight
                self.momentum[index] = self.sgd.state[weight]["momentum_buffer"]
        assert embedding.grad is not None
        return loss.detach(), embedding.grad

    def loss(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss over the global batch with its graph; the rows of weight that it used and where they come from."""
        label = self.gather(label) - self.start
        row = torch.where((label >= 0) & (label < len(self.weight)))[0]
        weight, column, index = self._rows(label[row])
        return self._cross_entropy(self._cosine(embedding, weight), row, column), weight, index

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all ranks, [b, …] → [B, …]; backward, their gradients' sum over ranks goes back to them."""
        return _Gather.apply(x, self.ranks)

    def _train(self, parameter: Tensor, momentum: Tensor) -> None:
        """Make `parameter` what SGD updates."""
        self.sgd.param_groups[0]["params"] = [parameter]
        self.sgd.state.clear()
        self.sgd.state[parameter]["momentum_buffer"] = momentum

    def _rows(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows of weight used in this step [k, d], the targets' columns among them, and where they come from [k]."""
        if self.num_sampled >= len(self.weight):
            return self.weight, target, None
        positive = torch.unique(target)
        score = torch.rand(len(self.weight), device=target.device)
        score[positive] = 2.0
        index = score.topk(max(self.num_sampled, len(positive))).indices.sort().values
        column = torch.searchsorted(index, target)
        if not self.copies_rows:
            return self.weight.index_select(0, index), column, index
        active = nn.Parameter(self.weight.detach().index_select(0, index))
        self._train(active, self.momentum.index_select(0, index))
        return active, column, index

    def _cosine(self, embedding: Tensor, weight: Tensor) -> Tensor:
        """Cosines [B, k] float32 of the global batch."""
        x = self.gather(embedding)
        half = self.product_dtype != torch.float32
        with torch.autocast(x.device.type, dtype=self.product_dtype if half else None, enabled=half):
            cosine = F.linear(F.normalize(x), F.normalize(weight))
        return cosine.float().clamp(-1, 1)

    def _cross_entropy(self, cosine: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return _ShardedCrossEntropy.apply(self.margin(cosine, row, column), row, column, self.ranks)


class FullSoftmax(PartialFC):
    """All classes on one rank, torch's own cross-entropy. ValueError on several ranks or labels beyond the weight."""

    def _cross_entropy(self, cosine: Tensor, row: Tensor, column: Tensor) -> Tensor:
        if self.ranks.world_size != 1 or len(row) != len(cosine):
            raise ValueError(f"{len(row)} of {len(cosine)} targets are here, one of {self.ranks.world_size} ranks")
        return F.cross_entropy(self.margin(cosine, row, column), column)
