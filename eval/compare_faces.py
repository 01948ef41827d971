"""Two pictures, one person or not: `python -m eval.embed MODEL compare A B`.

Owns the verdict: "cannot tell" when a picture's quality is below the model's threshold, whatever the similarity; else
"same person" from the threshold of eval/thresholds.py on, with its false-accept rate; none where no threshold is known,
and then how to get one. Proven by tests/eval/test_compare_faces.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.embed import Embedder, require_finite
from eval.model_options import add_model_options, open_model
from eval.norm_quality import UNIT
from eval.picture_options import add_picture_options, face_maker
from eval.pictures import SIZE_HINT, FaceMaker, FilePictures, OtherSizeError
from eval.thresholds import Threshold, UnknownThresholdError, from_model, from_pairs
from eval.verification import similarity, squared_distances, write_json
from recognition.errors import SettingsError

SAME, DIFFERENT, CANNOT_TELL = "same person", "different people", "cannot tell"


def compare(
    embedder: Embedder, names: Sequence[str], faces: FaceMaker, threshold: Threshold | None, flip: bool = True
) -> dict[str, Any]:
    """The similarity of two picture files and what it means.

    Returns:
        {"similarity": cosine of image plus mirror (of the image without `flip`), "threshold", "far", "source": of the
        threshold, None without one, "pictures": [{"file", "norm", "quality": z, "recognizable"}] (None: not known),
        "verdict": "same person", "different people", "cannot tell", or None without a threshold}.

    Raises:
        DataError, SettingsError: a picture that cannot be used. NumericsError: an embedding is not finite.
    """
    pictures = FilePictures(Path(), names)
    try:
        images = np.stack([faces(pictures, number) for number in range(2)])
    except OtherSizeError as error:
        raise SettingsError(f"{error}. {SIZE_HINT}") from None
    straight, quality = embedder.embed_and_judge(images)
    sums = straight + embedder.embed(np.ascontiguousarray(images[:, :, ::-1])) if flip else straight
    require_finite(sums, list(names))
    norm = np.linalg.norm(straight, axis=1)
    alike = float(similarity(squared_distances(sums))[0])
    known: list[float | None] = [None, None]
    seen: list[bool | None] = [None, None]
    if quality is not None:
        assert embedder.quality is not None
        known, seen = quality.tolist(), embedder.quality.recognizable(quality).tolist()
    verdict = None
    if False in seen:
        verdict = CANNOT_TELL
    elif threshold is not None:
        verdict = SAME if alike >= threshold.value else DIFFERENT
    return {
        "similarity": alike,
        "threshold": None if threshold is None else threshold.value,
        "far": None if threshold is None else threshold.far,
        "source": None if threshold is None else threshold.source,
        "pictures": [{"file": str(name), "norm": float(length), "quality": z, "recognizable": good}
                     for name, length, z, good in zip(names, norm, known, seen, strict=True)],
        "verdict": verdict,
    }


def main(arguments: Sequence[str]) -> int | None:
    """Compare two pictures: similarity, quality, and whether they show one person."""
    options = _options(arguments)
    embedder = open_model(options)
    faces = face_maker(options, 1)
    threshold, unknown = _threshold(options, embedder)
    found = compare(embedder, options.pictures, faces, threshold, options.flip)
    print("\n".join(_lines(found, embedder, options, unknown)))
    if options.json is not None:
        write_json(options.json, found)
    return None


def _threshold(options: argparse.Namespace, embedder: Embedder) -> tuple[Threshold | None, str]:
    """The threshold, or None and why there is none. A FAR that was asked for and cannot be had is a SettingsError."""
    if options.threshold is not None:
        return Threshold(options.threshold, None, "given"), ""
    if options.pairs is not None:
        return from_pairs(embedder.embed, options.pairs, options.far, options.flip), ""
    try:
        if not options.flip:
            raise UnknownThresholdError("those of a model's verification are of image plus mirror")
        return from_model(options.model, embedder.info, options.far, options.set), ""
    except UnknownThresholdError as error:
        if options.far is not None or options.set is not None:
            raise SettingsError(f"{options.model}: {error}") from None
        return None, str(error)


def _lines(found: dict[str, Any], embedder: Embedder, options: argparse.Namespace, unknown: str) -> list[str]:
    lines = []
    for one in found["pictures"]:
        told = "not known: " + ("the embeddings have unit length, and no other output tells it"
                                if embedder.info.get("embedding") == UNIT else "the model carries no measure of it")
        if embedder.quality is not None:
            judged = "" if one["recognizable"] else f", below the threshold {embedder.quality.threshold:g}"
            told = f"{one['quality']:.2f}{judged}"
        lines.append(f"{one['file']}: norm {one['norm']:.2f}, quality {told}")
    of = "image plus mirror" if options.flip else "the images"
    lines.append(f"similarity {found['similarity']:.4f} (cosine of {of})")
    if found["threshold"] is None:
        lines.append(f"no threshold known: {unknown}. --threshold X gives one, --pairs FILE.bin [--far RATE] finds "
                     "one on pairs whose truth is known")
    else:
        far = "" if found["far"] is None else f"at FAR {found['far']:g}, "
        lines.append(f"threshold {found['threshold']:.4f} ({far}{found['source']})")
    return [*lines, f"verdict: {found['verdict'] or 'none'}{_terms(found, options.far is not None)}"]


def _terms(found: dict[str, Any], asked: bool) -> str:
    """On what terms a verdict holds. asked: whether the FAR was."""
    if found["verdict"] == CANNOT_TELL:
        return " (quality below the threshold)"
    if found["far"] is None:
        return ""
    return f" (at FAR {found['far']:g}{'' if asked else ', the strictest that the pairs support'})"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    usage = "python -m eval.embed MODEL compare A B [options]"
    parser = argparse.ArgumentParser(prog="python -m eval.embed", usage=usage, description=main.__doc__)
    add_model_options(parser)
    parser.add_argument("pictures", nargs=2, metavar="PICTURE", help="the two pictures")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--threshold", type=float, metavar="X", help="similarity from which on it is one person")
    where.add_argument("--pairs", metavar="SET", help="find the threshold on a .bin file, or a folder with pairs.txt")
    where.add_argument("--set", metavar="NAME", help="the set of the run's evaluation whose threshold counts")
    parser.add_argument("--far", type=float, metavar="RATE", help="false-accept rate of the threshold (the "
                        "strictest that the pairs support)")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="add the mirror image")
    parser.add_argument("--json", metavar="OUT", help="write the result there")
    add_picture_options(parser)
    options = parser.parse_args(list(arguments))
    if options.far is not None and not 0 < options.far < 1:
        parser.error(f"--far: expected above 0 and below 1, got {options.far:g}")
    if options.threshold is not None and (not -1 <= options.threshold <= 1 or options.far is not None):
        parser.error("--threshold: expected −1 to 1, and no --far: only who gives it knows its FAR")
    return options
