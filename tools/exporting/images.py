"""Faces to check, calibrate and measure on: uint8 RGB [n, 112, 112, 3], from a set, a folder, or made up.

Which images of a set are taken is a function of their number alone, spread over all of it: sets are often sorted by
person. Proven by tests/tools/exporting/test_images.py.
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eval.pixels import IMAGE_SIZE
from recognition.data.dataset import RecordDataset, open_dataset, split_roots
from recognition.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def generated_images(count: int) -> np.ndarray:
    """Smooth random pictures with grain, uint8 RGB [count, 112, 112, 3], always the same."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(0, 255, (count, 3, 8, 8)))
    smooth = nn.functional.interpolate(coarse, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear").permute(0, 2, 3, 1).numpy()
    return (smooth + random.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def read_images(source: Path, count: int) -> np.ndarray:
    """At most `count` images, uint8 RGB [n, 112, 112, 3], of a RecordIO set, a .bin, or a folder of aligned pictures.

    Bad records are passed over, as training passes over them; a picture in a folder that is no aligned face is not.
    DataError: no such set, or none in it that can be used.
    """
    # The readers decode with OpenCV; an export on generated images does without.
    from eval.quality_images import choose, load_images

    if source.suffix == ".bin":
        return load_images(source, count).images
    if source.is_dir() and not any(source.glob("*.rec")):
        return _of_folder(source, count)
    dataset = open_dataset(source)
    images = _usable(dataset, choose(dataset.num_images, count))
    if not images:
        raise DataError(f"{source}: no image of 112×112 pixels among {min(count, dataset.num_images)} of this set")
    return np.stack(images)


def _usable(dataset: RecordDataset, chosen: np.ndarray) -> list[np.ndarray]:
    from eval.verification_sets import decode_face
    from recognition.data.image_file import ImageError

    images = []
    for sample in chosen:
        with contextlib.suppress(ImageError):
            images.append(decode_face(dataset.encoded(int(sample))))
    return images


def _of_folder(folder: Path, count: int) -> np.ndarray:
    from eval.quality_images import choose
    from eval.verification_sets import decode_face
    from recognition.data.image_file import ImageError

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        raise DataError(f"{folder}: neither a RecordIO set nor a picture ({', '.join(ENDINGS)}) in this folder")
    images = []
    for number in choose(len(files), count):
        try:
            images.append(decode_face(files[number].read_bytes()))
        except (ImageError, OSError) as error:
            raise DataError(f"{files[number]}: {error}; expected aligned faces") from None
    return np.stack(images)


def run_images(run: Path) -> Path | None:
    """The training set that a run folder's config.json names, if it is still there; of several, the first."""
    try:
        root = split_roots(json.loads((run / "config.json").read_text())["settings"]["data.root"])[0]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return root if root.is_file() or any(root.glob("*.rec")) else None
