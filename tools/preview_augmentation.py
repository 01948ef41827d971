"""What a config does to its training images, as a contact sheet.

    python tools/preview_augmentation.py CONFIG --out sheet.png [--set a.b=VALUE …] [--data SET]
        [--samples 8] [--epochs 5] [--first-epoch 0] [--replace]

A row is a sample, evenly spaced over the set: its original, then what the run will see of it in each epoch, from the
draws of the run's own seed and by the reference of the loaders (recognition/data/augment.py), with what was applied
written below in order. Nothing is drawn twice: the sheet of one config is the same file every time.
Proven by tests/tools/test_preview_augmentation.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from recognition.config import load, read_file
from recognition.data.augment import augment
from recognition.data.augmentation import IMAGE_SIDE, INTERPOLATIONS, Augmentation, Draws, draw_augmentation
from recognition.data.batch import Samples
from recognition.data.dataset import open_dataset
from recognition.data.fallback import decode
from recognition.errors import SettingsError, run_command
from tools.records.output import new_file

_SCALE = 2  # pixels of the sheet for one of an image, repeated, so that what JPEG and blur do can be seen
_GAP, _LINE = 6, 17  # pixels between tiles; of a line of text
_MOST = 64  # samples or epochs: a sheet of 64 × 65 tiles has 220 million pixels


def main(arguments: Sequence[str]) -> int:
    """Write a contact sheet of a config's augmentation."""
    options = _parser().parse_args(arguments)
    if options.out.suffix.lower() != ".png":
        raise SettingsError(f"{options.out}: expected the name of a .png file")
    for name in ("samples", "epochs"):
        if not 1 <= getattr(options, name) <= _MOST:
            raise SettingsError(f"--{name} {getattr(options, name)}; expected 1 to {_MOST}")
    if options.first_epoch < 0:
        raise SettingsError(f"--first-epoch {options.first_epoch}; expected 0 or more")
    of_data = [] if options.data is None else [f"data.root={options.data}", "data.weights="]
    config = load(options.config, [*options.overrides, *of_data])
    prepare = getattr(read_file(options.config), "prepare", None)
    if prepare is not None and options.data is None:
        prepare(config)
    dataset = open_dataset(config.data.root, config.data.weights)
    sample = np.unique(np.linspace(0, dataset.num_images - 1, options.samples).astype(np.int64))
    epochs = range(options.first_epoch, options.first_epoch + options.epochs)
    with new_file(options.out, options.replace) as writing:
        sheet = contact_sheet(dataset, sample, config.data.augmentation, config.seed, epochs)
        if not cv2.imwrite(str(writing), sheet[..., ::-1]):
            raise SettingsError(f"{options.out}: could not be written")
    print(f"{options.out}: {len(sample)} samples of {config.data.root} in {len(epochs)} epochs")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="preview_augmentation.py", description=main.__doc__)
    parser.add_argument("config", metavar="CONFIG", help="a file of configs/")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture to write")
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="a.b=VALUE",
                        help="replace a setting, e.g. data.augmentation.blur=0.5")
    parser.add_argument("--data", metavar="SET", help="pictures of this RecordIO set instead of data.root's")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="rows (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="columns beside the original (%(default)s)")
    parser.add_argument("--first-epoch", type=int, default=0, metavar="N", help="the first of them (%(default)s)")
    parser.add_argument("--replace", action="store_true", help="replace a picture that exists")
    return parser


def contact_sheet(
    dataset: Samples, sample: np.ndarray, augmentation: Augmentation, seed: int, epochs: range
) -> np.ndarray:
    """Samples int64 [n] as rows, the original and each epoch as columns: uint8 RGB [h, w, 3]."""
    draws = [draw_augmentation(augmentation, seed, epoch, sample) for epoch in epochs]
    texts = [[f"sample {number}"] for number in sample.tolist()]
    rows = []
    for row, number in enumerate(sample.tolist()):
        original = decode(dataset, number)
        pictures = [(original, texts[row])]
        for epoch, draw in zip(epochs, draws, strict=True):
            pictures.append((augment(original, draw, row), [f"epoch {epoch}", *applied(draw, row)]))
        rows.append(pictures)
    lines = max(len(text) for pictures in rows for _, text in pictures)
    return np.concatenate([_row(pictures, lines) for pictures in rows])


def _row(pictures: list[tuple[np.ndarray, list[str]]], lines: int) -> np.ndarray:
    """Tiles beside each other with room for so many lines of text below each."""
    side = IMAGE_SIDE * _SCALE
    height, width = side + 2 * _GAP + _LINE * lines, side + _GAP
    row = np.full((height, width * len(pictures) + _GAP, 3), 255, np.uint8)
    for column, (image, text) in enumerate(pictures):
        left = _GAP + column * width
        row[_GAP : _GAP + side, left : left + side] = image.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
        for line, words in enumerate(text, 1):
            place = (left, _GAP + side + line * _LINE - 3)
            cv2.putText(row, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return row


def applied(draws: Draws, row: int) -> list[str]:
    """What is drawn for a row, in the order in which it is applied; sizes are height x width in pixels."""
    matrix, down, up = draws.colour[row], INTERPOLATIONS[draws.down[row]], INTERPOLATIONS[draws.up[row]]
    is_grey = bool(np.allclose(matrix, matrix[:1]))
    colour = f"{'greyscale' if is_grey else 'colour'}: levels x{matrix[0, :3].sum():.2f} {matrix[0, 3]:+.0f}"
    steps = {
        "flip": draws.flip[row],
        f"resized crop {_size(draws.resized[row])}": draws.is_resized_crop[row],
        colour: draws.is_coloured[row],
        f"blur {draws.sigma[row]:.2f} pixels": draws.is_blurred[row],
        f"crop {_size(draws.crop[row])}": draws.is_cropped[row],
        f"down-sampling {draws.side[row]}": draws.is_downsampled[row],
        f"    {down}, {up}": draws.is_downsampled[row],
        f"JPEG {draws.quality[row]}": draws.is_compressed[row],
        f"cut-out {_size(draws.cutout[row])}": draws.is_cut_out[row],
    }
    return [text for text, happens in steps.items() if happens]


def _size(rectangle: np.ndarray) -> str:
    return f"{rectangle[2]}x{rectangle[3]}"


if __name__ == "__main__":
    run_command(main)
