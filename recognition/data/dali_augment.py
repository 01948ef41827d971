"""A planned augmentation as a part of DALI's graph: the arrays that the graph asks for, and its operators.

Augmentation that the settings never ask for is not in the graph. What is not augmented takes no part in the branches.
Proven against recognition/data/augment.py by tests/recognition/data/test_loaders.py and test_augment_pixels.py.
"""

import itertools
from typing import Any

import numpy as np
from nvidia import dali as typed_dali

from recognition.data.augment import blur_radius
from recognition.data.augmentation import IMAGE_SIDE, INTERPOLATIONS, Augmentation, Draws, draw_augmentation

dali: Any = typed_dali  # DALI's type stubs lack much of what its modules have
fn, types = dali.fn, dali.types

_FILTERS = {
    "nearest": types.INTERP_NN,
    "linear": types.INTERP_LINEAR,
    "cubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
    "area": types.INTERP_LINEAR,  # with anti-aliasing, which DALI takes per operator and not per sample
}
_FILTER_NUMBERS = np.array([int(_FILTERS[name]) for name in INTERPOLATIONS], np.int32)


def num_inputs(augmentation: Augmentation) -> int:
    """How many arrays `inputs` gives."""
    return len(inputs(augmentation, draw_augmentation(augmentation, 0, 0, np.zeros(1, np.int64))))


def inputs(augmentation: Augmentation, draws: Draws) -> list[np.ndarray]:
    """The arrays of a batch, one row a sample, in the order in which `augmented` takes them."""
    arrays: list[np.ndarray] = [draws.flip.astype(np.int32)]
    if augmentation.resized_crop > 0:
        arrays += [draws.is_resized_crop, draws.resized[:, :2], draws.resized[:, 2:]]
    if augmentation.colour > 0 or augmentation.greyscale > 0:
        arrays += [draws.is_coloured, draws.colour]
    if augmentation.blur > 0:
        # where nothing is blurred the numbers are not used, but must be such as the operator takes
        sigma = np.where(draws.is_blurred, draws.sigma, np.float32(1))
        window = np.array([2 * blur_radius(x) + 1 for x in sigma.tolist()], np.int32)
        arrays += [draws.is_blurred, sigma, window]
    if augmentation.crop > 0:
        arrays += [draws.is_cropped, *blanked_regions(draws.crop)]
    if augmentation.downsample > 0:
        side = np.repeat(draws.side[:, None], 2, axis=1).astype(np.float32)
        is_area = draws.down == INTERPOLATIONS.index("area")
        arrays += [draws.is_downsampled, side, is_area, _FILTER_NUMBERS[draws.down], _FILTER_NUMBERS[draws.up]]
    if augmentation.jpeg > 0:
        arrays += [draws.is_compressed, draws.quality]
    if augmentation.cutout > 0:
        cutout = draws.cutout.astype(np.float32)
        arrays += [draws.is_cut_out, cutout[:, :2], cutout[:, 2:]]
    return [np.ascontiguousarray(array) for array in arrays]  # DALI reads their memory as it is


def blanked_regions(crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The four bands around kept rectangles int32 [b, 4], as anchors and shapes (y, x) float32 [b, 8] each."""
    top, left, height, width = crop.T
    zero, full = np.zeros_like(top), np.full_like(top, IMAGE_SIDE)
    bottom, right = top + height, left + width
    anchor = np.stack([zero, zero, bottom, zero, zero, zero, zero, right], axis=1)
    shape = np.stack([top, full, IMAGE_SIDE - bottom, full, full, left, full, IMAGE_SIDE - right], axis=1)
    return anchor.astype(np.float32), shape.astype(np.float32)


# The functions below define the graph and are rewritten by DALI: `if` on a tensor is a branch for each sample.


def augmented(image: Any, augmentation: Augmentation, arrays: Any) -> Any:
    """The graph from decoded images to augmented ones; arrays: DALI's nodes of what `inputs` gives, in order."""
    arrays = iter(arrays)
    image = fn.flip(image, horizontal=next(arrays))
    if augmentation.resized_crop > 0:
        image = _resized_crop(image, *itertools.islice(arrays, 3))
    if augmentation.colour > 0 or augmentation.greyscale > 0:
        image = _colour(image, *itertools.islice(arrays, 2))
    if augmentation.blur > 0:
        image = _blur(image, *itertools.islice(arrays, 3))
    if augmentation.crop > 0:
        image = _erase(image, *itertools.islice(arrays, 3))
    if augmentation.downsample > 0:
        image = _downsample(image, *itertools.islice(arrays, 5))
    if augmentation.jpeg > 0:
        image = _compress(image, *itertools.islice(arrays, 2))
    if augmentation.cutout > 0:
        image = _erase(image, *itertools.islice(arrays, 3))
    return image


def _resized_crop(image: Any, is_resized_crop: Any, corner: Any, size: Any) -> Any:
    if is_resized_crop:
        image = fn.slice(image, start=corner, shape=size, axis_names="HW")
        image = fn.resize(image, size=[IMAGE_SIDE, IMAGE_SIDE], interp_type=_FILTERS["linear"], antialias=False)
    return image


def _colour(image: Any, is_coloured: Any, matrix: Any) -> Any:
    if is_coloured:
        image = fn.coord_transform(image, MT=matrix, dtype=types.UINT8)
    return image


def _blur(image: Any, is_blurred: Any, sigma: Any, window: Any) -> Any:
    if is_blurred:
        image = fn.gaussian_blur(image, sigma=sigma, window_size=window)
    return image


def _compress(image: Any, is_compressed: Any, quality: Any) -> Any:
    if is_compressed:
        image = fn.jpeg_compression_distortion(image, quality=quality)
    return image


def _erase(image: Any, is_erased: Any, anchor: Any, shape: Any) -> Any:
    if is_erased:
        image = fn.erase(image, anchor=anchor, shape=shape, axis_names="HW", fill_value=0)
    return image


def _downsample(image: Any, is_downsampled: Any, side: Any, is_area: Any, down: Any, up: Any) -> Any:
    if is_downsampled:
        down = fn.reinterpret(down, dtype=types.INTERP_TYPE)
        up = fn.reinterpret(up, dtype=types.INTERP_TYPE)
        if is_area:
            image = fn.resize(image, size=side, interp_type=down, antialias=True)
        else:
            image = fn.resize(image, size=side, interp_type=down, antialias=False)
        image = fn.resize(image, size=[IMAGE_SIDE, IMAGE_SIDE], interp_type=up, antialias=False)
    return image
