"""Which samples, with which augmentation, at which step: pure functions of (seed, epoch, sample), nothing stored.

An epoch's order is a keyed permutation computed for exactly the rows that are asked for, so that the plan of 42 million
samples takes no memory and any step can be the first. How a sample is augmented is drawn in
recognition/data/augmentation.py. Neither looks at ranks, and neither depends on a random generator of NumPy's, whose
streams may change between versions.
Legend: b rows of this rank's batch. Proven by tests/recognition/data/test_plan.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recognition.data.augmentation import IMAGE_SIDE, Augmentation, Draws, draw_augmentation
from recognition.errors import SettingsError
from recognition.streams import mix, stream_key, uniform_bits

__all__ = ["IMAGE_SIDE", "Augmentation", "Plan", "PlannedBatch", "epoch_order"]

_ORDER, _CIRCLE = 0x6F72646572, 0x636972636C65  # keep these streams apart from others of one seed
_AT_ONCE = 4096  # rows of an epoch's order
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

    An epoch is epoch_size // batch_size steps of distinct samples; what remains is left out of that epoch, other
    samples in each. parts: (images, weight) of each set, where there are several: an epoch uses a sample of weight w
    ⌊w⌋ or ⌈w⌉ times, over epochs w times on average, and epoch_size is the sum of round(w · images).
    Raises SettingsError when the ranks do not divide the batch or an epoch is smaller than a batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        augmentation: Augmentation,
        parts: Sequence[tuple[int, float]] = (),
    ) -> None:
        given = parts or [(num_images, 1)]
        self.parts = [_Part(number, images, weight) for number, (images, weight) in enumerate(given)]
        if sum(part.images for part in self.parts) != num_images:
            raise ValueError(f"parts of {[part.images for part in self.parts]} images; expected {num_images} in all")
        self.epoch_size = sum(part.used for part in self.parts)
        if batch_size < 1 or batch_size % world_size:
            raise SettingsError(f"batch size {batch_size} is not a positive multiple of the {world_size} ranks")
        if batch_size > self.epoch_size:
            raise SettingsError(f"batch size {batch_size} is larger than the set of {self.epoch_size} images" + (
                f" that an epoch uses of {num_images}" if self.epoch_size != num_images else ""))
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank}; expected 0 to {world_size - 1}")
        self.num_images, self.batch_size = num_images, batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.augmentation = seed, augmentation
        self.rows = batch_size // world_size
        self.steps_per_epoch = self.epoch_size // batch_size
        self._known: tuple[tuple[int, int], np.ndarray] = ((-1, 0), np.empty((0, self.rows), np.int64))

    def batch(self, step: int) -> PlannedBatch:
        """This rank's rows of the global step `step` ≥ 0, which counts on over epochs."""
        epoch, first = self._place(step)
        return self._at(step, epoch, self._order(epoch, first))

    def substitute(self, step: int, row: int, attempt: int) -> PlannedBatch:
        """What takes the place of a row whose sample cannot be used: one row; attempts 1, 2, … give others.

        It is what the same row of the global batch holds `attempt` steps later in the epoch's order, which goes on
        with what is left out and then from its start: a function of the plan alone, whatever else could not be used.
        """
        epoch, first = self._place(step)
        position = (first + row + attempt * self.batch_size) % self.epoch_size
        return self._at(step, epoch, epoch_order(self.epoch_size, self.seed, epoch, position, position + 1))

    def _order(self, epoch: int, first: int) -> np.ndarray:
        """This rank's rows of an epoch's order from a position on; worked out for some steps at once, for speed."""
        (known_epoch, start), known = self._known
        ahead = (first - start) // self.batch_size
        if epoch != known_epoch or not 0 <= ahead < len(known):
            steps = np.arange(first, self.epoch_size - self.rows + 1, self.batch_size)[: -(-_AT_ONCE // self.rows)]
            place = (steps[:, None] + np.arange(self.rows)).ravel()
            known = permuted(place, self.epoch_size, stream_key(_ORDER, self.seed, epoch)).reshape(-1, self.rows)
            self._known, ahead = ((epoch, first), known), 0
        return known[ahead].copy()

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step and the position of this rank's first row in its order."""
        if step < 0:
            raise ValueError(f"step {step}; expected 0 or more")
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_of_epoch * self.batch_size + self.rank * self.rows

    def _at(self, step: int, epoch: int, place: np.ndarray) -> PlannedBatch:
        """The batch of places int64 [b] in an epoch's list of samples, in which parts follow each other."""
        if all(part.weight == 1 for part in self.parts):
            return PlannedBatch(step, epoch, place, draw_augmentation(self.augmentation, self.seed, epoch, place))
        sample, repeat = np.empty_like(place), np.empty_like(place)
        first_place = first_sample = 0
        for part in self.parts:
            rows = (place >= first_place) & (place < first_place + part.used)
            own, repeat[rows] = part.samples(place[rows] - first_place, self.seed, epoch)
            sample[rows] = first_sample + own
            first_place, first_sample = first_place + part.used, first_sample + part.images
        # A sample that comes twice in an epoch is augmented twice: the second time is another stream.
        stream = sample + repeat * self.num_images
        return PlannedBatch(step, epoch, sample, draw_augmentation(self.augmentation, self.seed, epoch, stream))


class _Part:
    """One set's part of the epochs: `used` of its samples in each.

    The set's samples stand on a circle in a shuffled order, and each epoch takes up where the last one stopped: within
    an epoch no sample comes ⌈weight⌉ + 1 times, and over epochs all come equally often, give or take one.
    """

    def __init__(self, number: int, images: int, weight: float) -> None:
        self.number, self.images, self.weight = number, images, weight
        self.used = round(images * weight)
        if not self.used:
            raise SettingsError(f"weight {weight} of a set of {images} images: not one image an epoch")

    def samples(self, place: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples of this set at places [b] below `used`, and how often they came before in the epoch, int64 [b]."""
        if self.weight == 1:
            return place, np.zeros_like(place)
        seat = (epoch * self.used + place) % self.images
        return permuted(seat, self.images, stream_key(_CIRCLE, seed, self.number)), place // self.images


def epoch_order(num_images: int, seed: int, epoch: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The samples at positions [start, stop) of an epoch, int64: a permutation of 0 … num_images − 1, in parts."""
    place = np.arange(start, num_images if stop is None else stop)
    return permuted(place, num_images, stream_key(_ORDER, seed, epoch))


def permuted(place: np.ndarray, count: int, key: np.ndarray) -> np.ndarray:
    """What a keyed permutation of 0 … count − 1 has at places int64 [b], int64 [b]. key: of `stream_key`, [1].

    A number is split as x = l·n + r over a grid of m × n ≥ count cells with m, n ≈ √count, and Feistel rounds add
    hashes of one half to the other, modulo m or n in turn. Whatever leaves the range walks on through the same
    permutation until it is back (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    m = math.isqrt(count - 1) + 1
    n = -(-count // m)
    keys = uniform_bits(key, _ROUNDS)[0].tolist()
    x = place.astype(np.uint64)
    walking = np.arange(len(x))
    while len(walking):
        left, right = np.divmod(x[walking], np.uint64(n))
        for one, other in zip(keys[::2], keys[1::2], strict=True):
            left = (left + mix(right ^ np.uint64(one)) % np.uint64(m)) % np.uint64(m)
            right = (right + mix(left ^ np.uint64(other)) % np.uint64(n)) % np.uint64(n)
        moved = left * np.uint64(n) + right
        x[walking] = moved
        walking = walking[moved >= count]
    return x.astype(np.int64)
