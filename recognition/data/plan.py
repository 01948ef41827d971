"""Which samples, with which augmentation, at which step: pure functions of (seed, epoch, sample), nothing stored.

An epoch's order is a keyed permutation computed for exactly the rows that are asked for, so that the plan of 42 million
samples takes no memory and any step can be the first. How a sample is augmented is drawn in
recognition/data/augmentation.py. Neither looks at ranks, and neither depends on a random generator of NumPy's, whose
streams may change between versions.
Legend: b rows of this rank's batch. Proven by tests/recognition/data/test_plan.py.
"""

import math
from dataclasses import dataclass

import numpy as np

from recognition.data.augmentation import IMAGE_SIDE, Augmentation, Draws, draw_augmentation
from recognition.errors import SettingsError
from recognition.streams import mix, stream_key, uniform_bits

__all__ = ["IMAGE_SIDE", "Augmentation", "Plan", "PlannedBatch", "epoch_order"]

_ORDER = 0x6F72646572  # keeps this stream apart from others of one (seed, epoch)
_ROUNDS = 16  # of the permutation; four make a generic Feistel network pseudo-random (Luby and Rackoff, 1988),
# and sixteen leave no bias in the orders of three to six samples either (tested)


@dataclass(frozen=True)
class PlannedBatch:
    """One rank's rows of one step: samples int64 [b], and how each is augmented."""

    step: int
    epoch: int
    sample: np.ndarray
    draws: Draws


class Plan:
    """The batches of one rank. `batch_size` is global; rank r of R holds rows [r·b, (r+1)·b) of each, b = batch_size/R.

    An epoch is num_images // batch_size steps of distinct samples; what remains is left out of that epoch, other
    samples in each. Raises SettingsError when the ranks do not divide the batch or the set is smaller than a batch.
    """

    def __init__(
        self, num_images: int, batch_size: int, rank: int, world_size: int, seed: int, augmentation: Augmentation
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise SettingsError(f"batch size {batch_size} is not a positive multiple of the {world_size} ranks")
        if batch_size > num_images:
            raise SettingsError(f"batch size {batch_size} is larger than the set of {num_images} images")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank}; expected 0 to {world_size - 1}")
        self.num_images, self.batch_size = num_images, batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.augmentation = seed, augmentation
        self.rows = batch_size // world_size
        self.steps_per_epoch = num_images // batch_size

    def batch(self, step: int) -> PlannedBatch:
        """This rank's rows of the global step `step` ≥ 0, which counts on over epochs."""
        if step < 0:
            raise ValueError(f"step {step}; expected 0 or more")
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self.batch_size + self.rank * self.rows
        sample = epoch_order(self.num_images, self.seed, epoch, first, first + self.rows)
        return PlannedBatch(step, epoch, sample, draw_augmentation(self.augmentation, self.seed, epoch, sample))


def epoch_order(num_images: int, seed: int, epoch: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The samples at positions [start, stop) of an epoch, int64: a permutation of 0 … num_images − 1, in parts.

    A number is split as x = l·n + r over a grid of m × n ≥ num_images cells with m, n ≈ √num_images, and Feistel
    rounds add hashes of one half to the other, modulo m or n in turn. Whatever leaves the range walks on through the
    same permutation until it is back (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    m = math.isqrt(num_images - 1) + 1
    n = -(-num_images // m)
    keys = uniform_bits(stream_key(_ORDER, seed, epoch), _ROUNDS)[0].tolist()
    x = np.arange(start, num_images if stop is None else stop, dtype=np.uint64)
    walking = np.arange(len(x))
    while len(walking):
        left, right = np.divmod(x[walking], np.uint64(n))
        for key, next_key in zip(keys[::2], keys[1::2], strict=True):
            left = (left + mix(right ^ np.uint64(key)) % np.uint64(m)) % np.uint64(m)
            right = (right + mix(left ^ np.uint64(next_key)) % np.uint64(n)) % np.uint64(n)
        moved = left * np.uint64(n) + right
        x[walking] = moved
        walking = walking[moved >= num_images]
    return x.astype(np.int64)
