"""The class centres of one shard: which classes a rank owns and how centres start.

Convention: a shard is the contiguous classes [start, stop); row j of every tensor here is class start + j.
Proven by tests/recognition/heads/test_centers.py.
"""

import math

import numpy as np
import torch
from torch import Tensor

from recognition.streams import stream_key, uniform

_CENTERS = 0x63656E74657273  # keeps this use of a seed apart from others

INITIAL_DEVIATION = 0.01
"""Standard deviation of a fresh centre's elements, the reference trainer's."""


def shard_range(num_classes: int, rank: int, world_size: int) -> tuple[int, int]:
    """Classes [start, stop) of a rank: the first `num_classes mod world_size` ranks own one more."""
    share, extra = divmod(num_classes, world_size)
    start = rank * share + min(rank, extra)
    return start, start + share + (rank < extra)


def initial_centers(seed: int, start: int, stop: int, size: int, device: torch.device | None = None) -> Tensor:
    """Fresh centres [stop − start, size] float32 ~ N(0, 0.01²), row j a pure function of (seed, class start + j).

    So they depend neither on the number of ranks nor on the device.
    """
    centers = torch.empty(stop - start, size)
    rows = max(1, (1 << 22) // size)
    for low in range(0, stop - start, rows):
        high = min(low + rows, stop - start)
        label = np.arange(start + low, start + high, dtype=np.uint64)
        centers[low:high] = normal(torch.from_numpy(uniform(stream_key(_CENTERS, seed, label), size)))
    return centers.to(device)


def normal(u: Tensor) -> Tensor:
    """Uniform numbers k / 2^53, float64 in [0, 1), to normal ones of deviation 0.01, finite for every k.

    The quantile function √2·erf⁻¹(2p − 1) at the middle of each of the 2^53 cells; p stays inside (0, 1) in float64.
    """
    p = (u + 2.0**-54).clamp(2.0**-54, 1 - 2.0**-53)
    return torch.special.erfinv(2 * p - 1) * (math.sqrt(2) * INITIAL_DEVIATION)
