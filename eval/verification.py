"""Verification sets (LFW, CFP-FP, AgeDB, CALFW, CPLFW): pairs of faces, same person or not.

Owns the reading of `.bin` sets and the protocol on them: embed the image and its mirror, sum, unit length, squared L2
distance, ten folds in order. `load_bin` reads, `embed_with_mirror` embeds (a rank may do a part of a set), `score`
turns embeddings into the figures, `evaluate` is the three in a row. `python -m eval.verification MODEL SET…` prints a
table and writes JSON. Proven by tests/eval/test_verification.py.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from prettytable import PrettyTable
from tqdm import tqdm

from eval import metrics
from eval.embed import IMAGE_SIZE, Embed, require_finite
from eval.model_options import add_model_options, open_model
from eval.safe_pickle import load_pairs
from recognition.data.image_file import ImageError, decode_rgb, image_size
from recognition.errors import DataError, SettingsError, run_command

FAR_TARGET = 1e-3
EMBED_AT_ONCE = 256  # images between two steps of the progress bar


@dataclass(frozen=True)
class VerificationSet:
    """A set in memory; pair i is images 2i and 2i+1."""

    name: str
    images: np.ndarray  # uint8 RGB [2N, 112, 112, 3]
    issame: np.ndarray  # bool [N]


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


def decode_face(encoded: bytes | np.ndarray) -> np.ndarray:
    """Decode an aligned face to RGB uint8 [112, 112, 3]; ImageError for what is no image or has another size."""
    height, width = image_size(encoded)  # by its header, before any decoder takes memory for it
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ImageError(f"expected {IMAGE_SIZE}×{IMAGE_SIZE} pixels, got {width}×{height}")
    return decode_rgb(encoded)


def reduce_to(images: np.ndarray, side: int) -> np.ndarray:
    """Throw away what does not fit in side×side pixels: area averages down, bicubic up; uint8 [N, 112, 112, 3].

    The paper's Table 1 has sides 16 and 8 and does not name its interpolation. Area averaging is what a small sensor
    sees, without aliases; bicubic is what image viewers and resizers do by default.
    """
    if not 1 <= side <= IMAGE_SIZE:
        raise SettingsError(f"degrade: expected a side of 1 to {IMAGE_SIZE} pixels, got {side}")
    result = np.empty_like(images)
    for number, image in enumerate(images):
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        result[number] = cv2.resize(small, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_CUBIC)
    return result


def embed_with_mirror(embed: Embed, images: np.ndarray, progress: tqdm | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Embed images and their mirror images.

    Returns:
        f(x) + f(mirror of x), float32 [N, d]; the mean of the two norms, float32 [N]. Rows are independent, so parts
        of a set that were embedded apart can be put one behind the other.
    """
    sums, norms = [], []
    for start in range(0, max(len(images), 1), EMBED_AT_ONCE):  # an empty part, too, has a number of columns
        part = images[start : start + EMBED_AT_ONCE]
        straight, mirrored = embed(part), embed(np.ascontiguousarray(part[:, :, ::-1]))
        sums.append(straight + mirrored)
        norms.append((np.linalg.norm(straight, axis=1) + np.linalg.norm(mirrored, axis=1)) / 2)
        if progress is not None:
            progress.update(len(part))
    return np.concatenate(sums), np.concatenate(norms)


def score(
    embedding_sum: np.ndarray, norm: np.ndarray, issame: np.ndarray, name: str = "", degrade: int | None = None
) -> dict[str, Any]:
    """Figures of a set from ready-made embeddings.

    Args:
        embedding_sum: float32 [2N, d], image plus mirror, not unit length.
        norm: float32 [2N], norms of single embeddings (mean of image and mirror).
        issame: bool [N].
        name: of the set.
        degrade: side in pixels that the images were reduced to, if they were.

    Returns:
        {set, degrade, pairs, accuracy, accuracy_std, val, far, eer, mean_norm}. A figure that the set cannot give
        (`val`, `far`, `eer` when there are only same or only different pairs) is None.

    Raises:
        NumericsError: an embedding that is not finite. DataError: fewer pairs than folds.
    """
    issame = np.asarray(issame, bool)
    if len(embedding_sum) != 2 * len(issame):
        raise ValueError(f"expected two embeddings a pair, got {len(embedding_sum)} for {len(issame)} pairs")
    require_finite(embedding_sum)
    if len(issame) < 10:
        raise DataError(f"{name}: the protocol's ten folds need at least ten pairs, got {len(issame)}")
    distance = squared_distances(embedding_sum)
    accuracy = metrics.fold_accuracy(distance, issame)
    val, far, _ = metrics.fold_val(distance, issame, FAR_TARGET)
    one_kind = issame.all() or not issame.any()
    return {
        "set": name,
        "degrade": degrade,
        "pairs": len(issame),
        "accuracy": float(accuracy.mean()),
        "accuracy_std": float(accuracy.std()),
        "val": val,
        "far": far,
        "eer": None if one_kind else metrics.equal_error_rate(metrics.roc(-distance, issame)),
        "mean_norm": float(np.mean(norm)),
    }


def squared_distances(embedding_sum: np.ndarray) -> np.ndarray:
    """Squared L2 distance of the unit vectors of each pair; [2N, d] → float64 [N]. A zero vector stays zero."""
    embedding = np.asarray(embedding_sum, np.float64)
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.where(length > 0, length, 1)
    return np.square(unit[0::2] - unit[1::2]).sum(axis=1)


def folds_without_val(issame: np.ndarray) -> list[int]:
    """Which folds VAL leaves out for want of positive or negative pairs."""
    return metrics.fold_val(np.zeros(len(issame)), issame, FAR_TARGET)[2]


def evaluate(
    embed: Embed, pairs: VerificationSet, degrade: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """Run the protocol on a set, see `score`; `degrade` reduces the images to that many pixels a side first."""
    images = reduce_to(pairs.images, degrade) if degrade else pairs.images
    title = pairs.name + (f" {degrade}×{degrade}" if degrade else "")
    with tqdm(total=len(images), desc=title, unit="image", disable=None if progress else True, leave=False) as bar:
        embedding_sum, norm = embed_with_mirror(embed, images, bar)
    return score(embedding_sum, norm, pairs.issame, pairs.name, degrade)


def table(results: Sequence[dict[str, Any]]) -> PrettyTable:
    """Results as a table for people."""
    out = PrettyTable(["set", "degraded to", "pairs", "accuracy", "VAL", "at FAR", "EER", "mean norm"], align="r")
    out.align["set"] = "l"
    for row in results:
        out.add_row(
            [
                row["set"],
                f"{row['degrade']}×{row['degrade']}" if row["degrade"] else "",
                row["pairs"],
                f"{row['accuracy']:.4f} ± {row['accuracy_std']:.4f}",
                *("–" if row[key] is None else f"{row[key]:.4f}" for key in ("val", "far", "eer")),
                f"{row['mean_norm']:.2f}",
            ]
        )
    return out


def write_json(path: str | Path, value: Any) -> None:
    """Write results as JSON (a figure that does not exist is null); DataError when the file cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def main(arguments: Sequence[str]) -> int | None:
    """Evaluate a model on verification sets."""
    parser = argparse.ArgumentParser(prog="python -m eval.verification", description=main.__doc__)
    add_model_options(parser)
    parser.add_argument("sets", nargs="+", metavar="SET", help=".bin file")
    parser.add_argument("--degrade", nargs="+", type=int, default=[], metavar="SIDE", help="also reduced to SIDE×SIDE")
    parser.add_argument("--json", metavar="OUT", help="write the results there")
    options = parser.parse_args(list(arguments))
    for side in options.degrade:
        if not 1 <= side <= IMAGE_SIZE:
            parser.error(f"--degrade: expected 1 to {IMAGE_SIZE}, got {side}")
    for path in options.sets:  # a bad file shows now, not after an hour of embedding the others
        load_pairs(path)
    embedder = open_model(options)
    results = []
    for path in options.sets:
        pairs = load_bin(path)
        left_out = folds_without_val(pairs.issame)
        if left_out:
            print(f"{path}: VAL leaves out folds {left_out}: they lack same or different pairs")
        results += [evaluate(embedder.embed, pairs, side, progress=True) for side in [None, *options.degrade]]
    print(table(results))
    if options.json:
        write_json(options.json, results)
    return None


if __name__ == "__main__":
    run_command(main)
