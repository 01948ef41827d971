"""Sub-centres: which of a class's K centres stands for the person, and which samples are too far from it to count.

Deng et al., "Sub-center ArcFace", ECCV 2020: with K centres a class, the one that most samples choose is that of the
person, and samples far from it (75° there) are noise under its label. The paper drops them from the set and trains
again; here they stop counting from an epoch on, in the same run: they pull neither on the backbone nor on the centres.
Proven by tests/recognition/heads/test_subcenters.py.
"""

import math

import torch
from torch import Tensor

from recognition.distributed import Ranks
from recognition.heads.margins import Margin


class Dominance:
    """chosen: [C_r, K] how often a sample of the class was nearest to each of its centres, so far."""

    def __init__(self, classes: int, per_class: int, degrees: float, start_step: int, ranks: Ranks) -> None:
        self.chosen = torch.zeros(classes, per_class, device=ranks.device)
        self.least = math.cos(math.radians(degrees))
        self.start_step = start_step
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, margin: Margin, classes: int, ranks: Ranks, steps_per_epoch: int) -> "Dominance | None":
        """What a margin's settings ask for; None for those that drop nothing."""
        degrees = getattr(margin, "drop_degrees", None)
        if degrees is None:
            return None
        start_step = math.ceil(getattr(margin, "drop_epoch", 0.0) * steps_per_epoch)
        return cls(classes, margin.centers_per_class, degrees, start_step, ranks)

    def counts(self, cosine: Tensor, which: Tensor, row: Tensor, owned: Tensor, step: int) -> Tensor:
        """1 for samples that count, 0 for those dropped, [N]; remembers their choice for `commit`.

        cosine: [N, K] to the class's centres.  which: [N] the nearest.  row: [N] class of the shard where `owned`.
        """
        self._last = (row, which, owned)
        dominant = self.chosen[row].argmax(dim=1, keepdim=True)
        near = cosine.gather(1, dominant).squeeze(1) >= self.least
        return (near | (step < self.start_step)).to(cosine.dtype)

    def commit(self, finite: Tensor) -> None:
        """Count this step's choices."""
        if self._last is not None:
            row, which, owned = self._last
            self.chosen.index_put_((row, which), (owned & finite).to(self.chosen.dtype), accumulate=True)
