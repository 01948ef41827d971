"""One rank's classes: the stored rows, read and written a tile at a time.

Convention: the rows of class j, K of them side by side (K = 1 but for sub-centres), are rows j·K … j·K + K − 1 of the
weight, of the optimiser's states and of the memory. What is stored may be bfloat16; what is computed is float32, and
rows are rounded once, when they are written: the weight and the optimiser's states stochastically, so that small
updates are not lost, the memory to the nearest.
Proven by tests/recognition/heads/test_shard.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recognition.distributed import Ranks
from recognition.heads.centers import initial_centers, shard_range
from recognition.heads.row_optimizers import RowOptimizer, stochastic_round
from recognition.memory import Injection, Memory, mix, mix_gradient
from recognition.streams import torch_seed
from recognition.vectors import inverse_norm

_ROUNDING = 0x726F756E64696E67  # keeps this use of a seed apart from others

FEW = 4
"""Of so many rows one may be fresh at the most for the fresh ones to be mixed by themselves."""

Where = Tensor | slice
"""Classes of the shard: their numbers, or a range of them."""


def can_count(x: Tensor) -> bool:
    """Whether the host can ask how many of a tensor's elements are true without waiting for a device."""
    return x.device.type == "cpu"


class Mixed(NamedTuple):
    """The few rows among those read that memory is mixed into: f of n.

    at: [f] int64, their places.  effective: [f, d] unit length.  reach: [f, 1] as in `Centers`.
    """

    at: Tensor
    effective: Tensor
    reach: Tensor


class Centers(NamedTuple):
    """Some classes' rows, read: n = classes · K.

    where: rows of the shard.  classes: which classes.  weight: [n, d].  inverse: [n, 1] 1/‖weight‖.
    effective: [n, d] unit length, with what is injected; None where it is weight · inverse and was not asked for.
    reach: [n, 1] of a change of the weight's direction in the effective centre, None where nothing is injected.
    mixed: where `effective` is None, the rows of which it is not weight · inverse; None: there are none.
    """

    where: Where
    classes: Where
    weight: Tensor
    inverse: Tensor
    effective: Tensor | None
    reach: Tensor | None = None
    mixed: Mixed | None = None


class Shard:
    """The classes [start, stop) of a run, C_r of them, K rows each.

    weight: [C_r·K, d].  states: of the optimiser, by name, [C_r·K, …].  last_used: [C_r] int64, the last step that
    used a class, −1 for never; None where skipped decay is not made up for.  memory: None without injection.
    """

    def __init__(
        self, num_classes: int, size: int, per_class: int, ranks: Ranks, seed: int, optimizer: RowOptimizer,
        stored: torch.dtype, computed: torch.dtype, catch_up: bool,
    ) -> None:
        self.start, self.stop = shard_range(num_classes, ranks.rank, ranks.world_size)
        self.classes, self.per_class, self.size = self.stop - self.start, per_class, size
        self.optimizer, self.computed = optimizer, computed
        fresh = initial_centers(seed, self.start, self.stop, size * per_class, ranks.device)
        self.weight = fresh.view(-1, size).to(stored)
        self.states = optimizer.states(len(self.weight), size, stored, ranks.device)
        self.last_used = torch.full((self.classes,), -1, device=ranks.device) if catch_up else None
        self.memory: Memory | None = None
        self._seed, self._rank = seed, ranks.rank
        self._rounding = torch.Generator(ranks.device) if stored == torch.bfloat16 else None

    def inject(self, injection: Injection, batch_size: int, start_step: int) -> None:
        """Give the shard a memory."""
        self.memory = Memory(injection, len(self.weight), self.size, self.weight.device, batch_size, start_step,
                             self.weight.dtype)

    def locate(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Of labels [n]: the class in this shard, and whether it is here; elsewhere the former is any valid one."""
        local = label - self.start
        return local.clamp(0, max(self.classes - 1, 0)), (local >= 0) & (local < self.classes)

    def tensors(self) -> dict[str, Tensor]:
        """All that is stored, class by class: [C_r, …], what a checkpoint keeps and another sharding cuts."""
        rows = {"weight": self.weight, **self.states}
        if self.memory is not None:
            rows |= {"memory": self.memory.rows, "stamp": self.memory.stamp}
        by_class = {name: x.view(self.classes, self.per_class, *x.shape[1:]) for name, x in rows.items()}
        tensors = rows if self.per_class == 1 else by_class
        return tensors if self.last_used is None else tensors | {"last_used": self.last_used}

    def injects(self, step: int) -> bool:
        """Whether anything can be injected in this step, as far as the settings say."""
        return self.memory is not None and self.memory.injects(step)

    def read(self, where: Where, step: int, form: bool = True, inverse: Tensor | None = None) -> Centers:
        """Rows of the classes `where`, and their effective centres in this step.

        form: the effective centres are wanted even where they are just weight · inverse.  inverse: if it is known.
        """
        rows = self._rows(where)
        weight = self.weight[rows].to(self.computed)
        inverse = inverse_norm(weight) if inverse is None else inverse
        if not self.injects(step):
            return Centers(rows, where, weight, inverse, weight * inverse if form else None)
        assert self.memory is not None
        memory, fresh = self.memory.rows[rows], self.memory.fresh(rows, step)
        # On a CPU, where asking how many there are costs nothing, few fresh rows among many are mixed by themselves.
        few = fresh.nonzero().squeeze(1) if not form and can_count(fresh) else None
        if few is not None and len(few) * FEW <= len(fresh):
            every = fresh.new_ones(len(few))
            effective, reach = mix(weight[few], inverse[few], memory[few].to(self.computed), every,
                                   self.memory.injection)
            return Centers(rows, where, weight, inverse, None, None, Mixed(few, effective, reach))
        return Centers(rows, where, weight, inverse,
                       *mix(weight, inverse, memory.to(self.computed), fresh, self.memory.injection))

    def weight_gradient(self, centers: Centers, gradient: Tensor) -> Tensor:
        """∂loss/∂weight from ∂loss/∂effective, both [n, d]; the latter is used up."""
        assert centers.effective is not None
        if centers.reach is not None:
            return mix_gradient(gradient, centers.weight, centers.inverse, centers.effective, centers.reach)
        radial = torch.linalg.vecdot(gradient, centers.effective)[:, None]
        return gradient.addcmul_(radial, centers.effective, value=-1).mul_(centers.inverse)

    def begin(self, step: int) -> None:
        """Seed the rounding of this step: a function of (seed, step, rank), so that nothing has to be saved."""
        if self._rounding is not None:
            self._rounding.manual_seed(torch_seed(_ROUNDING, self._seed, step, self._rank))

    def update(self, centers: Centers, gradient: Tensor, lr: float, step: int, finite: Tensor) -> None:
        """Train rows that were read, and store them; `finite` False changes nothing, to the bit."""
        rows = centers.where
        states = {name: state[rows] for name, state in self.states.items()}
        computed = {name: x.to(self.computed) if x.dtype == torch.bfloat16 else x for name, x in states.items()}
        skipped = None
        if self.last_used is not None:
            skipped = (step - 1 - self.last_used[centers.classes]).repeat_interleave(self.per_class)
        self.optimizer.update(centers.weight, computed, gradient, lr, finite, skipped)
        self._store(self.weight, rows, centers.weight)
        for name in states:
            self._store(self.states[name], rows, computed[name])

    def mark_used(self, where: Where, step: int, finite: Tensor) -> None:
        """Remember when classes were used, after all of them were updated."""
        if self.last_used is not None:
            self.last_used[where] = torch.where(finite, step, self.last_used[where])

    def _store(self, stored: Tensor, rows: Where, new: Tensor) -> None:
        if stored.dtype != new.dtype:
            assert self._rounding is not None
            stored[rows] = stochastic_round(new, self._rounding)  # exact where nothing changed
        elif not isinstance(rows, slice):  # indexing by a tensor copied the rows; a slice is a view of them
            stored[rows] = new

    def _rows(self, where: Where) -> Where:
        """Rows of classes."""
        k = self.per_class
        if k == 1:
            return where
        if isinstance(where, slice):
            return slice(where.start * k, where.stop * k)
        return (where[:, None] * k + torch.arange(k, device=where.device)).flatten()
