"""What happens to a training image: the settings of an augmentation, and its parameters drawn for each sample.

The parameters come from a random stream that belongs to (seed, epoch, sample) and to nothing else: not to ranks, not to
a random generator of NumPy's, whose streams may change between versions. Draws do not depend on the probabilities:
switching crops on changes no flip. recognition/data/augment.py applies them in NumPy, recognition/data/dali_augment.py
in DALI. Legend: b rows of a batch. Proven by tests/recognition/data/test_augmentation.py.
"""

import math
from dataclasses import dataclass

import numpy as np

from recognition.errors import SettingsError
from recognition.streams import stream_key, uniform

IMAGE_SIDE = 112  # pixels; the network's input, to which sets of aligned faces are cut
# Interpolations by number, the same in every loader (recognition/data/resample.py says what each computes). `area`
# differs from `linear` only when scaling down, so that it is not drawn for scaling up.
INTERPOLATIONS = ("nearest", "linear", "cubic", "lanczos", "area")
UP_INTERPOLATIONS = INTERPOLATIONS[:4]

_AUGMENTATION = 0x6175676D  # keeps these streams apart from others of one (seed, epoch)


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
class Draws:
    """The parameters of a batch. An image without a crop keeps (0, 0, 112, 112), one not down-sampled side 112.

    crop is top, left, height, width in pixels of the flipped image; down and up are numbers in INTERPOLATIONS.
    """

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


def draw_augmentation(augmentation: Augmentation, seed: int, epoch: int, sample: np.ndarray) -> Draws:
    """The parameters for samples int64 [b] in an epoch; each depends on its own sample alone."""
    u = uniform(stream_key(_AUGMENTATION, seed, epoch, sample), 10).T
    crop = _crop(augmentation, u[2:6])
    crop[u[1] >= augmentation.crop] = (0, 0, IMAGE_SIDE, IMAGE_SIDE)
    low, high = augmentation.downsample_side
    side = np.maximum(np.rint(IMAGE_SIDE * (low + (high - low) * u[7])), 1).astype(np.int32)
    side[u[6] >= augmentation.downsample] = IMAGE_SIDE
    return Draws(
        flip=u[0] < augmentation.flip,
        crop=crop,
        side=side,
        down=(u[8] * len(INTERPOLATIONS)).astype(np.int32),
        up=(u[9] * len(UP_INTERPOLATIONS)).astype(np.int32),
    )


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
