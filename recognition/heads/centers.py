"""The class centres of one shard: which classes a rank owns, how centres start, and their row-wise optimiser.

Convention: a shard is the contiguous classes [start, stop); row j of every tensor here is class start + j. The
optimiser touches the rows that it is given and no others: a row that was not used keeps its weight and its momentum
to the bit, without decay or drift.
Proven by tests/recognition/heads/test_centers.py.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

INITIAL_DEVIATION = 0.01
"""Standard deviation of a fresh centre's elements, the reference trainer's."""


def shard_range(num_classes: int, rank: int, world_size: int) -> tuple[int, int]:
    """Classes [start, stop) of a rank: the first `num_classes mod world_size` ranks own one more."""
    share, extra = divmod(num_classes, world_size)
    start = rank * share + min(rank, extra)
    return start, start + share + (rank < extra)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., 2014) on int64, whose arithmetic wraps."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * (factor - (1 << 64))
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def initial_centers(seed: int, start: int, stop: int, size: int, device: torch.device | None = None) -> Tensor:
    """Fresh centres [stop − start, size] float32 ~ N(0, 0.01²), row j a pure function of (seed, class start + j).

    So they do not depend on the number of ranks. Counter-based: splitmix64 of (seed, class, element) gives 24 bits
    of a uniform number, the inverse error function makes them normal.
    """
    centers = torch.empty(stop - start, size, device=device)
    element = torch.arange(size, device=device, dtype=torch.int64)
    key = int(_mix(torch.tensor(seed + 1, dtype=torch.int64)).item())
    rows = max(1, (1 << 22) // size)
    for low in range(0, stop - start, rows):
        high = min(low + rows, stop - start)
        label = torch.arange(start + low, start + high, device=device, dtype=torch.int64)
        bits = _mix(_mix(label + key)[:, None] + element)
        uniform = (((bits >> 40) & 0xFFFFFF).to(torch.float32) + 0.5) / (1 << 24)
        centers[low:high] = torch.erfinv(2 * uniform - 1) * (math.sqrt(2) * INITIAL_DEVIATION)
    return centers


@dataclass(frozen=True)
class RowSGD:
    """SGD with momentum for rows: v ← momentum·v + g + weight_decay·w;  w ← w − lr·v (torch.optim.SGD's form)."""

    momentum: float = 0.9
    weight_decay: float = 5e-4

    def update(self, weight: Tensor, velocity: Tensor, gradient: Tensor, lr: float, finite: Tensor) -> None:
        """Update rows in place. weight, velocity, gradient: [n, d] float32.

        finite: boolean scalar on the same device; False leaves weight and velocity unchanged to the bit, without the
        host having to look.
        """
        new_velocity = torch.add(gradient, weight, alpha=self.weight_decay).add_(velocity, alpha=self.momentum)
        new_weight = torch.add(weight, new_velocity, alpha=-lr)
        torch.where(finite, new_velocity, velocity, out=velocity)
        torch.where(finite, new_weight, weight, out=weight)
