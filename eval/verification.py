"""Verification sets (LFW, CFP-FP, AgeDB, CALFW, CPLFW): pairs of faces, same person or not.

Owns the protocol: embed the image and its mirror, sum, unit length, squared L2 distance, folds in order.
`embed_with_mirror` embeds (a rank may do a part of a set), `score` turns embeddings into the figures, `evaluate` is
both in a row, `evaluate_with_curve` has the ROC and the hardest pairs as well. eval/verification_sets.py reads sets.
`python -m eval.verification MODEL SET…` prints a table and writes JSON. Proven by tests/eval/test_verification.py.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from prettytable import PrettyTable
from tqdm import tqdm

from eval import metrics
from eval.colour_probe import colour_warning
from eval.embed import IMAGE_SIZE, Embed, require_finite
from eval.model_options import add_model_options, open_model
from eval.roc_plot import check_plot_path, write_roc_plot
from eval.verification_sets import VerificationSet, check_set, decode_face, load_bin, load_folder, load_set
from recognition.errors import DataError, SettingsError, run_command

__all__ = ["VerificationSet", "decode_face", "embed_with_mirror", "evaluate", "evaluate_with_curve",
           "folds_without_val", "load_bin", "load_folder", "load_set", "reduce_to", "score", "similarity",
           "squared_distances", "table", "write_json"]

FAR_TARGET = 1e-3
HARDEST = 8  # pairs of each kind in a curve
EMBED_AT_ONCE = 256  # images between two steps of the progress bar


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


def embed_with_mirror(
    embed: Embed, images: np.ndarray, progress: tqdm | None = None, flip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Embed images and their mirror images.

    Returns:
        f(x) + f(mirror of x), float32 [N, d]; the mean of the two norms, float32 [N]. Without `flip` f(x) and its norm.
        Rows are independent, so parts of a set that were embedded apart can be put one behind the other.
    """
    sums, norms = [], []
    for start in range(0, max(len(images), 1), EMBED_AT_ONCE):  # an empty part, too, has a number of columns
        part = images[start : start + EMBED_AT_ONCE]
        straight = embed(part)
        mirrored = embed(np.ascontiguousarray(part[:, :, ::-1])) if flip else straight
        sums.append(straight + mirrored if flip else straight)
        norms.append((np.linalg.norm(straight, axis=1) + np.linalg.norm(mirrored, axis=1)) / 2)
        if progress is not None:
            progress.update(len(part))
    return np.concatenate(sums), np.concatenate(norms)


def score(
    embedding_sum: np.ndarray, norm: np.ndarray, issame: np.ndarray, name: str = "", degrade: int | None = None,
    folds: int = 10,
) -> dict[str, Any]:
    """Figures of a set from ready-made embeddings.

    Args:
        embedding_sum: float32 [2N, d], image plus mirror, not unit length.
        norm: float32 [2N], norms of single embeddings (mean of image and mirror).
        issame: bool [N].
        name: of the set.
        degrade: side in pixels that the images were reduced to, if they were.
        folds: consecutive parts of the pairs; the threshold for each is chosen on the others.

    Returns:
        {set, degrade, pairs, accuracy, accuracy_std, val, far, eer, mean_norm, different, threshold@far}: `different`
        counts the pairs of different people, on which {"0.1": t, …}, thresholds of `similarity`, rest
        (`metrics.threshold_at_far`). A figure that the set cannot give (`val`, `far`, `eer` when there are only same or
        only different pairs, a threshold for which they are too few) is None.

    Raises:
        NumericsError: an embedding that is not finite. DataError: fewer pairs than folds.
    """
    issame = np.asarray(issame, bool)
    if len(embedding_sum) != 2 * len(issame):
        raise ValueError(f"expected two embeddings a pair, got {len(embedding_sum)} for {len(issame)} pairs")
    if not np.isfinite(embedding_sum).all():
        require_finite(embedding_sum, [f"{name}: pair {row // 2}, image {row}" for row in range(len(embedding_sum))])
    if len(issame) < folds:
        number = {10: "ten"}.get(folds, folds)
        raise DataError(f"{name}: the protocol's {number} folds need at least {number} pairs, got {len(issame)}")
    distance = squared_distances(embedding_sum)
    accuracy = metrics.fold_accuracy(distance, issame, folds)
    val, far, _ = metrics.fold_val(distance, issame, FAR_TARGET, folds)
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
        "mean_norm": float(np.mean(norm, dtype=np.float64)),
        "different": int(np.count_nonzero(~issame)),
        "threshold@far": metrics.threshold_at_far(similarity(distance), issame),
    }


def similarity(squared_distance: np.ndarray) -> np.ndarray:
    """Cosines of unit vectors from their squared distances, float64 [N]: ‖a − b‖² = 2 − 2·a·b."""
    return 1 - squared_distance / 2


def squared_distances(embedding_sum: np.ndarray) -> np.ndarray:
    """Squared L2 distance of the unit vectors of each pair; [2N, d] → float64 [N]. A zero vector stays zero."""
    embedding = np.asarray(embedding_sum, np.float64)
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.where(length > 0, length, 1)
    return np.square(unit[0::2] - unit[1::2]).sum(axis=1)


def folds_without_val(issame: np.ndarray, folds: int = 10) -> list[int]:
    """Which folds VAL leaves out for want of positive or negative pairs; none are named where there are no pairs."""
    return metrics.fold_val(np.zeros(len(issame)), issame, FAR_TARGET, folds)[2] if len(issame) >= folds else []


def evaluate(
    embed: Embed, pairs: VerificationSet, degrade: int | None = None, progress: bool = False, flip: bool = True
) -> dict[str, Any]:
    """Run the protocol on a set, see `score`.

    Args:
        embed: images → raw embeddings.
        pairs: the set.
        degrade: reduce the images to that many pixels a side first, see `reduce_to`.
        progress: show a bar, on terminals.
        flip: add the mirror image's embedding.
    """
    embedding_sum, norm = _embed_set(embed, pairs, degrade, progress, flip)
    return score(embedding_sum, norm, pairs.issame, pairs.name, degrade, pairs.folds)


def evaluate_with_curve(
    embed: Embed, pairs: VerificationSet, degrade: int | None = None, path: str | Path | None = None, *,
    progress: bool = False, flip: bool = True,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """As `evaluate`, and the set's curve; `path`: where the set lies, for whoever shows its pictures.

    Returns:
        The figures, see `score`, and {"set", "degrade", "path", "roc": see `metrics.roc_summary`, "hardest":
        {"false_match": [[pair, score] × 8, the highest of different people first], "false_non_match": [… the lowest
        of one person first]}}. The score is minus the squared distance; the band is over people where the set names
        them, else over pairs. None instead of a curve where all pairs are of one kind.
    """
    embedding_sum, norm = _embed_set(embed, pairs, degrade, progress, flip)
    row = score(embedding_sum, norm, pairs.issame, pairs.name, degrade, pairs.folds)
    if pairs.issame.all() or not pairs.issame.any():
        return row, None
    alike = -squared_distances(embedding_sum)
    return row, {
        "set": pairs.name,
        "degrade": degrade,
        "path": None if path is None else str(path),
        "roc": metrics.roc_summary(alike, pairs.issame, pairs.people),
        "hardest": {
            "false_match": _hardest(alike, ~pairs.issame, -alike),
            "false_non_match": _hardest(alike, pairs.issame, alike),
        },
    }


def _hardest(alike: np.ndarray, among: np.ndarray, ease: np.ndarray) -> list[list[Any]]:
    """[pair, score] of the pairs with the least `ease`, of equal ones the first of the set."""
    rows = np.flatnonzero(among)
    return [[int(row), float(alike[row])] for row in rows[np.argsort(ease[rows], kind="stable")][:HARDEST]]


def _embed_set(
    embed: Embed, pairs: VerificationSet, degrade: int | None, progress: bool, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    images = reduce_to(pairs.images, degrade) if degrade else pairs.images
    title = pairs.name + (f" {degrade}×{degrade}" if degrade else "")
    with tqdm(total=len(images), desc=title, unit="image", disable=None if progress else True, leave=False) as bar:
        return embed_with_mirror(embed, images, bar, flip)


def table(results: Sequence[dict[str, Any]]) -> PrettyTable:
    """Results as a table for people; of several sets with a row of their means for each degradation."""
    out = PrettyTable(["set", "degraded to", "pairs", "accuracy", "VAL", "at FAR", "EER", "mean norm"], align="r")
    out.align["set"] = "l"
    for row in results:
        accuracy = f"{row['accuracy']:.4f} ± {row['accuracy_std']:.4f}"
        out.add_row([row["set"], _side(row["degrade"]), row["pairs"], accuracy, *_figures(row)])
    for side in dict.fromkeys(row["degrade"] for row in results):
        rows = [row for row in results if row["degrade"] == side]
        if len(rows) > 1:
            means = {key: _mean([row[key] for row in rows]) for key in ("accuracy", "val", "far", "eer", "mean_norm")}
            out.add_row(["mean", _side(side), sum(row["pairs"] for row in rows), f"{means['accuracy']:.4f}",
                         *_figures(means)])
    return out


def _side(side: int | None) -> str:
    return f"{side}×{side}" if side else ""


def _figures(row: Mapping[str, Any]) -> list[str]:
    rates = ("–" if row[key] is None else f"{row[key]:.4f}" for key in ("val", "far", "eer"))
    return [*rates, f"{row['mean_norm']:.2f}"]


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a set does not have the figure: a mean over fewer sets would not be comparable."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if len(found) == len(values) else None


def write_json(path: str | Path, value: Any) -> None:
    """Write results as JSON (a figure that does not exist is null); DataError when the file cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def main(arguments: Sequence[str]) -> int | None:
    """Evaluate a model on verification sets."""
    options = _options(arguments)
    if options.plot is not None:
        check_plot_path(options.plot)
    for path in options.sets:  # a bad file shows now, not after an hour of embedding the others
        check_set(path)
    embedder = open_model(options)
    results: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for path in options.sets:
        pairs = load_set(path)
        left_out = folds_without_val(pairs.issame, pairs.folds)
        if left_out:
            print(f"{path}: VAL leaves out folds {left_out}: they lack same or different pairs")
        if not results:
            warning = colour_warning(embedder.embed, pairs.images, pairs.issame, embedder.pixels.color_order)
            if warning is not None:
                print(f"{options.model}: {warning}")
        for side in [None, *options.degrade]:
            if options.curves is None and options.plot is None:
                results.append(evaluate(embedder.embed, pairs, side, progress=True, flip=options.flip))
                continue
            row, curve = evaluate_with_curve(embedder.embed, pairs, side, path, progress=True, flip=options.flip)
            results.append(row)
            curves += [] if curve is None else [curve]
    print(table(results))
    _write(options, results, curves)
    return None


def _write(options: argparse.Namespace, results: list[dict[str, Any]], curves: list[dict[str, Any]]) -> None:
    if options.json is not None:
        write_json(options.json, results)
    if options.curves is not None:
        write_json(options.curves, {"verification": results, "curves": curves})
    if options.plot is not None and curves:
        named: dict[str, dict[str, Any]] = {}
        for curve in curves:
            name = " ".join(filter(None, (curve["set"], _side(curve["degrade"]))))
            while name in named:  # two sets of one name
                name += "′"
            named[name] = curve["roc"]
        write_roc_plot(options.plot, named, str(options.model))
    elif options.plot is not None:
        raise DataError(f"{options.plot}: nothing to draw: a curve needs pairs of both kinds")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.verification", description=main.__doc__)
    add_model_options(parser)
    parser.add_argument("sets", nargs="+", metavar="SET", help=".bin file, or folder with pairs.txt")
    parser.add_argument("--degrade", nargs="+", type=int, default=[], metavar="SIDE", help="also reduced to SIDE×SIDE")
    parser.add_argument("--json", metavar="OUT", help="write the results there")
    parser.add_argument("--curves", metavar="OUT", help="write the results with ROC and hardest pairs there")
    parser.add_argument("--plot", metavar="FILE", help="draw the ROC there (.png, .svg, .pdf)")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="add the mirror image")
    options = parser.parse_args(list(arguments))
    for side in options.degrade:
        if not 1 <= side <= IMAGE_SIZE:
            parser.error(f"--degrade: expected 1 to {IMAGE_SIZE}, got {side}")
    return options


if __name__ == "__main__":
    run_command(main)
