"""The momentum backbone: a slow copy of the backbone whose embeddings are remembered.

ξ ← γ·ξ + (1 − γ)·θ after every step that was taken, parameters and BatchNorm's running statistics alike; counters are
copied. It never receives a gradient and runs in eval mode.
Proven by tests/recognition/test_momentum.py.
"""

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recognition.batch_statistics import BatchStatistics
from recognition.distributed import ALONE, Ranks
from recognition.folding import Folded


class MomentumBackbone:
    """A copy of `online` that follows it, the same on all ranks.

    batch_norm "train": normalises by the batch instead of its statistics, which its own forward then moves: averaged
    over ranks, and put back after a step that was not taken, as the online backbone's. Nothing else is in that mode.
    fold: an image batch on the meta device: BatchNorm on statistics is folded into what stands in front of it. None:
    it is not.
    module: the state.  network: what runs; the module itself or its folded form.
    """

    def __init__(
        self, online: nn.Module, decay: float, batch_norm: Literal["average", "train"] = "average",
        ranks: Ranks = ALONE, fold: Tensor | None = None,
    ) -> None:
        self.decay = decay
        self.module = copy.deepcopy(online).requires_grad_(False).eval()
        if batch_norm == "train":
            for norm in self.module.modules():
                norm.train(isinstance(norm, _BatchNorm))
        pairs: list[tuple[Tensor, Tensor]] = [*zip(self.module.parameters(), online.parameters(), strict=True)]
        buffers = [*zip(self.module.buffers(), online.buffers(), strict=True)]
        if batch_norm == "train":  # its own forward keeps its statistics
            buffers = []
        pairs += [(mine, theirs) for mine, theirs in buffers if mine.is_floating_point()]
        self._mine = [mine for mine, _ in pairs]
        self._online = [theirs for _, theirs in pairs]
        # In mode "train" the module's own forward moves its statistics, on each rank by its own images.
        self._own = BatchStatistics(self.module, ranks) if batch_norm == "train" else None
        self._before: tuple[Tensor, Tensor] | None = None
        self._counters = [(mine, theirs) for mine, theirs in buffers if not mine.is_floating_point()]
        self._folded = Folded(self.module, fold) if fold is not None and self._own is None else None
        self.network: Callable[[Tensor], Tensor] = self._folded.module if self._folded else self.module

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Embeddings [b, d] without gradient."""
        if self._own is not None and self._before is None:  # of a batch in parts, before the first
            self._before = self._own.remember()
        if self._folded is not None:
            self._folded.refresh()
        return self.network(image)

    @torch.no_grad()
    def update(self, good: Tensor) -> None:
        """Follow the online backbone by one step; `good` (boolean scalar on the device) False changes nothing."""
        step = good.to(self._mine[0].dtype) * (1 - self.decay)
        if step.is_cpu:
            torch._foreach_lerp_(self._mine, self._online, step.item())
        else:
            follow(self._mine, self._online, step)
        for mine, theirs in self._counters:
            torch.where(good, theirs, mine, out=mine)
        if self._own is not None and self._before is not None:
            self._own.settle(self._before, good)
            self._before = None


def follow(mine: list[Tensor], online: list[Tensor], step: Tensor) -> None:
    """In place mine += step·(online − mine); `step` is a scalar on the device, and the host never reads it.

    torch._foreach_lerp_ does so in one pass, but would have the host wait for a tensor as its weight.
    """
    difference = torch._foreach_sub(online, mine)
    torch._foreach_mul_(difference, step)
    torch._foreach_add_(mine, difference)
