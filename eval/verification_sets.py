"""Verification sets in memory, from `.bin` files and from folders with `pairs.txt`.

Owns the reading: pictures are uint8 RGB [2N, 112, 112, 3], pair i is pictures 2i and 2i+1, and everything else than
aligned faces of 112×112 is refused with its name. Proven by tests/eval/test_verification_sets.py and
tests/eval/test_verification.py.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.pair_list import USUAL_FOLDS, read_pair_list
from eval.pixels import IMAGE_SIZE
from eval.safe_pickle import load_pairs
from recognition.data.image_file import ImageError, decode_rgb, image_size
from recognition.errors import DataError

PAIRS = "pairs.txt"
ENDINGS = (".jpg", ".png", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class VerificationSet:
    """A set in memory; pair i is images 2i and 2i+1."""

    name: str
    images: np.ndarray  # uint8 RGB [2N, 112, 112, 3]
    issame: np.ndarray  # bool [N]
    folds: int = USUAL_FOLDS
    people: tuple[np.ndarray, np.ndarray] | None = None  # who the first and the second of a pair are, two int [N]


def load_bin(path: str | Path) -> VerificationSet:
    """Read a `.bin` set; its name is the file's without the ending.

    Raises:
        DataError: not such a file, an image that cannot be decoded, or one that is not 112×112.
    """
    path = Path(path)
    encoded, issame = load_pairs(path)
    images = np.empty((len(encoded), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for number, content in enumerate(encoded):
        try:
            images[number] = decode_face(content)
        except ImageError as error:
            raise DataError(f"{path}: pair {number // 2}, image {number}: {error}") from None
    return VerificationSet(path.stem, images, issame)


def load_set(path: str | Path) -> VerificationSet:
    """Read a `.bin` set, or a folder with `pairs.txt`; DataError as `load_bin` and `load_folder`."""
    return load_folder(path) if Path(path).is_dir() else load_bin(path)


def check_set(path: str | Path) -> None:
    """Raise the DataError of a set that is damaged, as far as that shows before its pictures are decoded."""
    if Path(path).is_dir():
        for pair in read_pair_list(Path(path) / PAIRS)[0]:
            for name, number in (pair.first, pair.second):
                _picture(Path(path), name, number, pair.line)
    else:
        load_pairs(path)


def load_folder(folder: str | Path) -> VerificationSet:
    """Read a folder of aligned faces NAME/NAME_0001.jpg (or .jpeg, .png, .bmp, .webp) with `pairs.txt`.

    The set is named like the folder; the folds are those of the list's first line (eval/pair_list.py).

    Raises:
        DataError: the list is malformed, a picture is missing, cannot be decoded, or is not 112×112; the line and
            the picture are named.
    """
    folder = Path(folder)
    pairs, folds = read_pair_list(folder / PAIRS)
    if folds < 2:
        raise DataError(f"{folder / PAIRS}: {folds} folds; a threshold is chosen on the other folds, so two at least")
    images = np.empty((2 * len(pairs), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    first_place: dict[tuple[str, int], int] = {}  # of a picture that stands in several pairs
    for place in range(len(images)):
        pair = pairs[place // 2]
        face = pair.second if place % 2 else pair.first
        known = first_place.setdefault(face, place)
        if known != place:
            images[place] = images[known]
            continue
        picture = _picture(folder, *face, pair.line)
        try:
            images[place] = decode_face(picture.read_bytes())
        except (ImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"{folder / PAIRS}: line {pair.line}: {picture}: {reason}") from None
    people = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in first_place))}
    first = np.array([people[pair.first[0]] for pair in pairs])
    second = np.array([people[pair.second[0]] for pair in pairs])
    issame = np.array([pair.same for pair in pairs])
    return VerificationSet(folder.resolve().name, images, issame, folds, (first, second))


def _picture(folder: Path, name: str, number: int, line: int) -> Path:
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise DataError(f"{folder / PAIRS}: line {line}: {name!r} is not a folder's name")
    start = folder / name / f"{name}_{number:04d}"
    for ending in ENDINGS:
        if (picture := start.with_name(start.name + ending)).is_file():
            return picture
    raise DataError(f"{folder / PAIRS}: line {line}: no picture {start} ({', '.join(ENDINGS)})")


def decode_face(encoded: bytes | np.ndarray) -> np.ndarray:
    """Decode an aligned face to RGB uint8 [112, 112, 3]; ImageError for what is no image or has another size."""
    height, width = image_size(encoded)  # by its header, before any decoder takes memory for it
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ImageError(f"expected {IMAGE_SIZE}×{IMAGE_SIZE} pixels, got {width}×{height}")
    return decode_rgb(encoded)
