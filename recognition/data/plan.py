"""Which samples, with which augmentation, at which step: pure functions of (seed, epoch, sample), nothing stored.

An epoch's order is a keyed permutation computed for exactly the rows that are asked for, so that the plan of 42 million
samples takes no memory and any step can be the first. Augmentation parameters come from a random stream that belongs to
(seed, epoch, sample). Neither looks at ranks, and neither depends on a random generator of NumPy's, whose streams may
change between versions. Draws do not depend on the probabilities: switching crops on changes no flip.
Legend: b rows of this rank's batch. Proven by tests/recognition/data/test_plan.py.
"""

import math
from dataclasses import dataclass

import numpy as np

from recognition.errors import SettingsError
from recognition.streams import mix, stream_key, uniform, uniform_bits

IMAGE_SIDE = 112  # pixels; the network's input, to which sets of aligned faces are cut
# Interpolations by number, the same in every loader (recognition/data/resample.py says what each computes). `area`
# differs from `linear` only when scaling down, so that it is not drawn for scaling up.
INTERPOLATIONS = ("nearest", "linear", "cubic", "lanczos", "area")
UP_INTERPOLATIONS = INTERPOLATIONS[:4]

_ORDER, _AUGMENTATION = 0x6F72646572, 0x6175676D  # keep the streams of one (seed, epoch) apart
_ROUNDS = 16  # of the permutation; four make a generic Feistel network pseudo-random (Luby and Rackoff, 1988),
# and sixteen leave no bias in the orders of three to six samples either (tested)


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of what happens to a training image, in this order: flip, crop, down-sampling.

    A crop keeps a rectangle with `crop_area` of the image's area and width : height in `crop_ratio`, in its place, with
    zeros around it. Down-sampling resizes to `downsample_side` of the side and back. The paper applies both with p =
    0.2 and states no ranges (Section 4.1 of "A Quality Aware Sample-to-Sample Comparison for Face Recognition").
    """

    flip: float = 0.5
    crop: float = 0.0
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    downsample: float = 0.0
    downsample_side: tuple[float, float] = (0.2, 1.0)

    def __post_init__(self) -> None:
        for name in ("flip", "crop", "downsample"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"augmentation.{name} = {getattr(self, name)}; expected a probability, 0 to 1")
        for name in ("crop_area", "downsample_side"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise SettingsError(f"augmentation.{name} = ({low}, {high}); expected 0 < lowest ≤ highest ≤ 1")
        low, high = self.crop_ratio
        if not 0 < low <= 1 <= high < math.inf:
            raise SettingsError(f"augmentation.crop_ratio = ({low}, {high}); expected 0 < lowest ≤ 1 ≤ highest")


@dataclass(frozen=True)
class PlannedBatch:
    """One rank's rows of one step. An image without a crop keeps (0, 0, 112, 112), one not down-sampled side 112.

    crop is top, left, height, width in pixels of the flipped image; down and up are numbers in INTERPOLATIONS.
    """

    step: int
    epoch: int
    sample: np.ndarray  # int64 [b]
    flip: np.ndarray  # bool [b]
    crop: np.ndarray  # int32 [b, 4]
    side: np.ndarray  # int32 [b]
    down: np.ndarray  # int32 [b]
    up: np.ndarray  # int32 [b]

    @property
    def is_cropped(self) -> np.ndarray:
        """Whether a part of the image is blanked, bool [b]."""
        return np.any(self.crop[:, 2:] < IMAGE_SIDE, axis=1)

    @property
    def is_downsampled(self) -> np.ndarray:
        """Whether the image is resized and back, bool [b]."""
        return self.side < IMAGE_SIDE


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
        return PlannedBatch(step, epoch, sample, **draw_augmentation(self.augmentation, self.seed, epoch, sample))


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


def draw_augmentation(augmentation: Augmentation, seed: int, epoch: int, sample: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters of PlannedBatch for samples int64 [b] in an epoch; each depends on its own sample alone."""
    u = uniform(stream_key(_AUGMENTATION, seed, epoch, sample), 10).T
    crop = _crop(augmentation, u[2:6])
    crop[u[1] >= augmentation.crop] = (0, 0, IMAGE_SIDE, IMAGE_SIDE)
    low, high = augmentation.downsample_side
    side = np.maximum(np.rint(IMAGE_SIDE * (low + (high - low) * u[7])), 1).astype(np.int32)
    side[u[6] >= augmentation.downsample] = IMAGE_SIDE
    return {
        "flip": u[0] < augmentation.flip,
        "crop": crop,
        "side": side,
        "down": (u[8] * len(INTERPOLATIONS)).astype(np.int32),
        "up": (u[9] * len(UP_INTERPOLATIONS)).astype(np.int32),
    }


def _crop(augmentation: Augmentation, u: np.ndarray) -> np.ndarray:
    """Rectangles int32 [b, 4] from uniform numbers [4, b].

    The area is uniform; the logarithm of the ratio is uniform where the rectangle fits: |ln ratio| ≤ −ln area.
    The size is rounded to whole pixels, the place is uniform over all that fit.
    """
    low, high = augmentation.crop_area
    area = low + (high - low) * u[0]
    least = np.maximum(math.log(augmentation.crop_ratio[0]), np.log(area))
    most = np.minimum(math.log(augmentation.crop_ratio[1]), -np.log(area))
    ratio = np.exp(least + (most - least) * u[1])
    size = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1)
    size = np.clip(np.rint(IMAGE_SIDE * size), 1, IMAGE_SIDE).astype(np.int32)
    corner = (u[2:4].T * (IMAGE_SIDE - size + 1)).astype(np.int32)
    return np.concatenate([corner, size], axis=1)
