"""What happens to a training image: the settings of an augmentation, and its parameters drawn for each sample.

The parameters come from a random stream that belongs to (seed, epoch, sample) and to nothing else: not to ranks, not to
a random generator of NumPy's, whose streams may change between versions. Draws do not depend on the probabilities:
switching crops on changes no flip. recognition/data/augment.py applies them in NumPy, recognition/data/dali_augment.py
in DALI. Legend: b rows of a batch. Proven by tests/recognition/data/test_augmentation.py.
"""

import math
from dataclasses import dataclass

import numpy as np

from recognition.data.colour import colour_matrices
from recognition.errors import SettingsError
from recognition.streams import stream_key, uniform

IMAGE_SIDE = 112  # pixels; the network's input, to which sets of aligned faces are cut
# Interpolations by number, the same in every loader (recognition/data/resample.py says what each computes). `area`
# differs from `linear` only when scaling down, so that it is not drawn for scaling up.
INTERPOLATIONS = ("nearest", "linear", "cubic", "lanczos", "area")
UP_INTERPOLATIONS = INTERPOLATIONS[:4]

_AUGMENTATION = 0x6175676D  # keeps these streams apart from others of one (seed, epoch)


# Settings that are ranges, by what they must be: probabilities aside, each is (lowest, highest).
_SHARES = ("crop_area", "resized_crop_area", "cutout_area", "downsample_side")
_RATIOS = ("crop_ratio", "resized_crop_ratio", "cutout_ratio")
_LIMITS = {
    "brightness": (0, 10), "contrast": (0, 10), "saturation": (0, 10), "hue": (-180, 180), "blur_sigma": (0.1, 16),
    "jpeg_quality": (1, 100),
}  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of what happens to a training image; flip alone happens unless asked for.

    In this order: flip, resized crop, colour, greyscale, blur, crop, down-sampling, JPEG compression, cut-out.
    Geometry is first, then what light, lens and sensor do in their order; crop follows colour and blur, so that its
    zeros stay zeros until down-sampling, and nothing touches those of cut-out.

    flip: left and right change places.
    resized_crop: a rectangle of `resized_crop_area` and `resized_crop_ratio` is enlarged to the whole image.
    colour: `brightness`, `contrast`, `saturation` (factors) and `hue` (degrees), recognition/data/colour.py.
    greyscale: each channel becomes the luma.
    blur: Gaussian, `blur_sigma` in pixels.
    crop: a rectangle with `crop_area` of the image's area and width : height in `crop_ratio` stays in its place, the
    rest becomes zero.
    downsample: resized to `downsample_side` of the side and back.
    jpeg: compressed with `jpeg_quality` (libjpeg's scale, both ends included) and decoded.
    cutout: a rectangle of `cutout_area` and `cutout_ratio` becomes zero.
    The paper applies crop and down-sampling with p = 0.2 and states no ranges (Section 4.1 of "A Quality Aware
    Sample-to-Sample Comparison for Face Recognition").
    """

    flip: float = 0.5
    crop: float = 0.0
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    downsample: float = 0.0
    downsample_side: tuple[float, float] = (0.2, 1.0)
    resized_crop: float = 0.0
    resized_crop_area: tuple[float, float] = (0.5, 1.0)
    resized_crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    colour: float = 0.0
    brightness: tuple[float, float] = (0.6, 1.4)
    contrast: tuple[float, float] = (0.6, 1.4)
    saturation: tuple[float, float] = (0.6, 1.4)
    hue: tuple[float, float] = (-10.0, 10.0)
    greyscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 2.0)
    jpeg: float = 0.0
    jpeg_quality: tuple[int, int] = (20, 90)
    cutout: float = 0.0
    cutout_area: tuple[float, float] = (0.02, 0.25)
    cutout_ratio: tuple[float, float] = (1 / 2, 2.0)

    def __post_init__(self) -> None:
        ranges = {*_SHARES, *_RATIOS, *_LIMITS}
        for name, value in vars(self).items():  # comparisons are written so that NaN fails them
            if name not in ranges:
                if not 0 <= value <= 1:
                    raise SettingsError(f"augmentation.{name} = {value}; expected a probability, 0 to 1")
                continue
            low, high = value
            if name in _SHARES:
                good, expected = 0 < low <= high <= 1, "0 < lowest ≤ highest ≤ 1"
            elif name in _RATIOS:
                good, expected = 0 < low <= 1 <= high < math.inf, "0 < lowest ≤ 1 ≤ highest"
            else:
                least, most = _LIMITS[name]
                good, expected = least <= low <= high <= most, f"{least} ≤ lowest ≤ highest ≤ {most}"
            if not good:
                raise SettingsError(f"augmentation.{name} = ({low}, {high}); expected {expected}")


@dataclass(frozen=True)
class Draws:
    """The parameters of a batch, and for what an image is spared those that change nothing.

    Rectangles are top, left, height, width in pixels, of the flipped image. down and up are numbers in INTERPOLATIONS.
    A row becomes another sample's where that takes its place (recognition/data/bad_samples.py): remember nothing of it.
    """

    flip: np.ndarray  # bool [b]
    crop: np.ndarray  # int32 [b, 4]; (0, 0, 112, 112) without
    side: np.ndarray  # int32 [b]; 112 without
    down: np.ndarray  # int32 [b]
    up: np.ndarray  # int32 [b]
    resized: np.ndarray  # int32 [b, 4]; (0, 0, 112, 112) without
    colour: np.ndarray  # float32 [b, 3, 4], of colour and greyscale together; the identity without
    sigma: np.ndarray  # float32 [b], pixels; 0 without
    quality: np.ndarray  # int32 [b]; 0 without
    cutout: np.ndarray  # int32 [b, 4]; (0, 0, 0, 0) without

    @property
    def is_cropped(self) -> np.ndarray:
        """Whether a part of the image is blanked, bool [b]."""
        return np.any(self.crop[:, 2:] < IMAGE_SIDE, axis=1)

    @property
    def is_downsampled(self) -> np.ndarray:
        """Whether the image is resized and back, bool [b]."""
        return self.side < IMAGE_SIDE

    @property
    def is_resized_crop(self) -> np.ndarray:
        """Whether a part of the image is enlarged to the whole, bool [b]."""
        return np.any(self.resized[:, 2:] < IMAGE_SIDE, axis=1)

    @property
    def is_coloured(self) -> np.ndarray:
        """Whether colours change, bool [b]."""
        return np.any(self.colour != np.eye(3, 4, dtype=np.float32), axis=(1, 2))

    @property
    def is_blurred(self) -> np.ndarray:
        """Whether the image is blurred, bool [b]."""
        return self.sigma > 0

    @property
    def is_compressed(self) -> np.ndarray:
        """Whether the image goes through JPEG, bool [b]."""
        return self.quality > 0

    @property
    def is_cut_out(self) -> np.ndarray:
        """Whether a rectangle is blanked, bool [b]."""
        return self.cutout[:, 2] > 0


def draw_augmentation(augmentation: Augmentation, seed: int, epoch: int, sample: np.ndarray) -> Draws:
    """The parameters for samples int64 [b] in an epoch; each depends on its own sample alone.

    A number of the stream has one use for ever: new augmentation takes new ones at the end.
    """
    extras = (augmentation.resized_crop, augmentation.colour, augmentation.greyscale, augmentation.blur,
              augmentation.jpeg, augmentation.cutout)  # fmt: skip
    u = uniform(stream_key(_AUGMENTATION, seed, epoch, sample), 30 if max(extras) > 0 else 10).T
    low, high = augmentation.downsample_side
    side = np.maximum(np.rint(IMAGE_SIDE * (low + (high - low) * u[7])), 1).astype(np.int32)
    side[u[6] >= augmentation.downsample] = IMAGE_SIDE
    crop = augmentation.crop_area, augmentation.crop_ratio
    resized = augmentation.resized_crop_area, augmentation.resized_crop_ratio
    cutout = augmentation.cutout_area, augmentation.cutout_ratio
    return Draws(
        flip=u[0] < augmentation.flip,
        crop=_rectangles(augmentation.crop, crop, u[1:6], (0, 0, IMAGE_SIDE, IMAGE_SIDE)),
        side=side,
        down=(u[8] * len(INTERPOLATIONS)).astype(np.int32),
        up=(u[9] * len(UP_INTERPOLATIONS)).astype(np.int32),
        resized=_rectangles(augmentation.resized_crop, resized, u[10:15], (0, 0, IMAGE_SIDE, IMAGE_SIDE)),
        colour=_colours(augmentation, u[15:21]),
        sigma=_sigmas(augmentation, u[21:23]),
        quality=_qualities(augmentation, u[23:25]),
        cutout=_rectangles(augmentation.cutout, cutout, u[25:30], (0, 0, 0, 0)),
    )


# Each takes its numbers of the stream, [n, b], of which n may be 0 where its probability is 0.


def _sigmas(augmentation: Augmentation, u: np.ndarray) -> np.ndarray:
    sigma = np.zeros(u.shape[1], np.float32)
    if augmentation.blur > 0:
        sigma[:] = np.where(u[0] < augmentation.blur, _between(augmentation.blur_sigma, u[1]), 0)
    return sigma


def _qualities(augmentation: Augmentation, u: np.ndarray) -> np.ndarray:
    quality, (low, high) = np.zeros(u.shape[1], np.int32), augmentation.jpeg_quality
    if augmentation.jpeg > 0:
        quality[:] = np.where(u[0] < augmentation.jpeg, low + np.floor(u[1] * (high - low + 1)), 0)
    return quality


def _colours(augmentation: Augmentation, u: np.ndarray) -> np.ndarray:
    """Matrices float32 [b, 3, 4] from uniform numbers [6, b]: colour, its four parameters, greyscale."""
    matrices = np.tile(np.eye(3, 4, dtype=np.float32), (u.shape[1], 1, 1))
    if augmentation.colour == augmentation.greyscale == 0:
        return matrices
    is_coloured, is_grey = u[0] < augmentation.colour, u[5] < augmentation.greyscale
    spared = {
        "brightness": np.where(is_coloured, _between(augmentation.brightness, u[1]), 1),
        "contrast": np.where(is_coloured, _between(augmentation.contrast, u[2]), 1),
        "saturation": np.where(is_coloured, _between(augmentation.saturation, u[3]), 1),
        "hue": np.where(is_coloured, _between(augmentation.hue, u[4]), 0),
        "grey": is_grey,
    }
    changed = is_coloured | is_grey
    if changed.any():
        matrices[changed] = colour_matrices(**{name: x[changed] for name, x in spared.items()})
    return matrices


def _between(limits: tuple[float, float], u: np.ndarray) -> np.ndarray:
    low, high = limits
    return low + (high - low) * u


def _rectangles(
    probability: float, ranges: tuple[tuple[float, float], tuple[float, float]], u: np.ndarray, spared: tuple[int, ...]
) -> np.ndarray:
    """Rectangles int32 [b, 4] from uniform numbers [5, b] and the ranges of area and ratio.

    The area is uniform; the logarithm of the ratio is uniform where the rectangle fits: |ln ratio| ≤ −ln area.
    The size is rounded to whole pixels, the place is uniform over all that fit.
    """
    if probability == 0:
        return np.tile(np.array(spared, np.int32), (u.shape[1], 1))
    area, ratios = _between(ranges[0], u[1]), ranges[1]
    least = np.maximum(math.log(ratios[0]), np.log(area))
    most = np.minimum(math.log(ratios[1]), -np.log(area))
    ratio = np.exp(least + (most - least) * u[2])
    size = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1)
    size = np.clip(np.rint(IMAGE_SIDE * size), 1, IMAGE_SIDE).astype(np.int32)
    corner = (u[3:5].T * (IMAGE_SIDE - size + 1)).astype(np.int32)
    rectangle = np.concatenate([corner, size], axis=1)
    rectangle[u[0] >= probability] = spared
    return rectangle
