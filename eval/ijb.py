"""IJB-B and IJB-C: templates of several faces, compared 1:1.

Owns the reading of an IJB-shaped folder (FOLDER/loose_crop, FOLDER/meta) and the protocol on it: align → embed image
and mirror → f(x) + f(mirror), not unit length, times the detector's score → mean within a media → sum over the media
of a template → unit length → dot product per pair → TAR at FAR. `load_ijb` reads, `embed_faces` embeds,
`template_features` aggregates, `pair_scores` compares, `evaluate_ijb` is all of that. `python -m eval.ijb MODEL DIR`
prints a table and writes JSON. Proven by tests/eval/test_ijb.py, against the protocol written out template by template.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable
from tqdm import tqdm

from eval import metrics
from eval.embed import Embed, load_embedder, require_finite
from eval.verification import write_json
from recognition.data.align import SIZE, align_face
from recognition.data.image_file import ImageError, decode_rgb
from recognition.errors import DataError, run_command

FACES_AT_ONCE = 128  # crops in memory
PAIRS_AT_ONCE = 2**9  # two blocks of 1 MB at 512 numbers a template: in the cache, three times as fast as 64 MB


@dataclass(frozen=True)
class IjbSet:
    """The lists of an IJB-shaped folder: F faces, T templates (by position in `template_ids`), P pairs."""

    name: str  # IJBB or IJBC
    folder: Path
    images: list[str]  # [F] file names in loose_crop
    landmarks: np.ndarray  # float64 [F, 5, 2]
    scores: np.ndarray  # float64 [F], the detector's
    template_ids: np.ndarray  # int64 [T], sorted
    template: np.ndarray  # int64 [F], position in template_ids
    media: np.ndarray  # int64 [F]
    first: np.ndarray  # int32 [P], position in template_ids
    second: np.ndarray  # int32 [P]
    issame: np.ndarray  # bool [P]


def load_ijb(folder: str | Path) -> IjbSet:
    """Read the lists under FOLDER/meta; whether it is IJB-B or IJB-C is seen from the file names.

    Raises:
        DataError: a list or an image is missing, a line is not what it should be (its number is named), lists do not
            fit each other.
    """
    folder = Path(folder)
    name, prefix = _target(folder)
    faces_path = folder / "meta" / f"{prefix}_face_tid_mid.txt"
    pairs_path = folder / "meta" / f"{prefix}_template_pair_label.txt"
    images, templates, media = _read_faces(faces_path)
    landmarks, scores = _read_landmarks(folder / "meta" / f"{prefix}_name_5pts_score.txt", images)
    _require_images(folder / "loose_crop", images)
    template_ids, template = np.unique(templates, return_inverse=True)
    first, second, issame = _read_pairs(pairs_path)
    return IjbSet(
        name, folder, images, landmarks, scores, template_ids, template, media,
        _positions(pairs_path, template_ids, first), _positions(pairs_path, template_ids, second), issame,
    )  # fmt: skip


def _target(folder: Path) -> tuple[str, str]:
    found = [prefix for prefix in ("ijbb", "ijbc") if (folder / "meta" / f"{prefix}_face_tid_mid.txt").is_file()]
    if len(found) != 1:
        listed = ", ".join(found) if found else "neither"
        raise DataError(f"{folder}/meta: expected ijbb_face_tid_mid.txt or ijbc_face_tid_mid.txt, got {listed}")
    return found[0].upper(), found[0]


def _read_lines(path: Path, columns: int) -> list[list[str]]:
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise DataError(f"{path}: line {number}: expected {columns} columns, got {len(row)}")
    if not rows:
        raise DataError(f"{path}: empty")
    return rows


def _read_faces(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    rows = _read_lines(path, 3)
    numbers = _numbers(path, rows, slice(1, 3), np.int64)
    return [row[0] for row in rows], numbers[:, 0], numbers[:, 1]


def _read_landmarks(path: Path, images: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks and scores in the order of `images`: by line where the lists agree line by line, else by name."""
    rows = _read_lines(path, 12)
    values = _numbers(path, rows, slice(1, 12), np.float64)
    names = [row[0] for row in rows]
    if names != images:
        line = {name: number for number, name in enumerate(names)}
        if len(line) != len(names):
            raise DataError(f"{path}: {len(names) - len(line)} names stand twice, in another order than the faces")
        missing = [name for name in images if name not in line]
        if missing:
            raise DataError(f"{path}: no landmarks for {len(missing)} faces: {_some(missing)}")
        values = values[[line[name] for name in images]]
    if not np.isfinite(values).all():
        number = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise DataError(f"{path}: {images[number]}: a landmark or score is not finite")
    return values[:, :10].reshape(-1, 5, 2), values[:, 10]


def _numbers(path: Path, rows: list[list[str]], columns: slice, dtype: type) -> np.ndarray:
    try:
        return np.array([row[columns] for row in rows], dtype=dtype)
    except (ValueError, OverflowError):
        for number, row in enumerate(rows, 1):
            try:
                np.array(row[columns], dtype=dtype)
            except (ValueError, OverflowError):
                raise DataError(f"{path}: line {number}: not numbers: {' '.join(row[columns])[:80]}") from None
        raise


def _require_images(folder: Path, images: list[str]) -> None:
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    missing = [name for name in images if name not in present]
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {len(images)} images are missing: {_some(missing)}")


def _read_pairs(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        pairs = np.loadtxt(path, dtype=np.int64, ndmin=2, comments=None)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: {str(error).splitlines()[0][:200]}") from None
    if pairs.ndim != 2 or pairs.shape[1] != 3 or not len(pairs):
        raise DataError(f"{path}: expected lines of `template template label`, got an array {list(pairs.shape)}")
    wrong = np.flatnonzero((pairs[:, 2] != 0) & (pairs[:, 2] != 1))
    if len(wrong):
        raise DataError(f"{path}: line {wrong[0] + 1}: expected label 0 or 1, got {pairs[wrong[0], 2]}")
    issame = pairs[:, 2] == 1
    if issame.all() or not issame.any():
        raise DataError(f"{path}: expected pairs of both labels, all {len(pairs)} have {pairs[0, 2]}")
    return pairs[:, 0], pairs[:, 1], issame


def _positions(path: Path, template_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    position = np.minimum(np.searchsorted(template_ids, wanted), len(template_ids) - 1)
    unknown = np.flatnonzero(template_ids[position] != wanted)
    if len(unknown):
        raise DataError(f"{path}: line {unknown[0] + 1}: template {wanted[unknown[0]]} has no face")
    return position.astype(np.int32)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def crop_face(ijb: IjbSet, number: int) -> np.ndarray:
    """Read and align one face, uint8 RGB [112, 112, 3]; DataError naming the image when that is impossible."""
    path = ijb.folder / "loose_crop" / ijb.images[number]
    try:
        return align_face(decode_rgb(path.read_bytes()), ijb.landmarks[number])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ImageError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


def embed_faces(
    embed: Embed,
    ijb: IjbSet,
    *,
    use_detector_score: bool = True,
    use_norm: bool = True,
    flip: bool = True,
    progress: bool = False,
) -> np.ndarray:
    """Embed every face; float32 [F, d].

    Args:
        embed: images → raw embeddings.
        ijb: the set.
        use_detector_score: multiply by the detector's score.
        use_norm: keep the length, which weighs quality; otherwise unit length before the score.
        flip: add the mirror image's embedding.
        progress: show a bar, on terminals.

    Raises:
        DataError: an image cannot be read. NumericsError: an embedding is not finite; the images are named.
    """
    features: np.ndarray | None = None
    total = len(ijb.images)
    with tqdm(total=total, desc=ijb.name, unit="face", disable=None if progress else True, leave=False) as bar:
        for start in range(0, total, FACES_AT_ONCE):
            rows = range(start, min(start + FACES_AT_ONCE, total))
            crops = np.empty((len(rows), SIZE, SIZE, 3), np.uint8)
            for place, number in enumerate(rows):
                crops[place] = crop_face(ijb, number)
            embedding = embed(crops)
            if flip:
                embedding = embedding + embed(np.ascontiguousarray(crops[:, :, ::-1]))
            require_finite(embedding, [ijb.images[number] for number in rows])
            if features is None:
                features = np.empty((total, embedding.shape[1]), np.float32)
            features[start : rows.stop] = embedding
            bar.update(len(rows))
    assert features is not None  # a set without faces was refused
    if not use_norm:
        features = _unit(features)
    if use_detector_score:
        features *= ijb.scores[:, None].astype(np.float32)
    return features


def template_features(features: np.ndarray, template: np.ndarray, media: np.ndarray, templates: int) -> np.ndarray:
    """Mean within each media, sum over the media of each template, unit length.

    Args:
        features: float32 [F, d].
        template: int [F], 0 .. templates − 1, each at least once.
        media: int [F]; the same number in two templates is two media.
        templates: T.

    Returns:
        float32 [T, d]; sums are taken in float64.
    """
    result = np.empty((templates, features.shape[1]), np.float32)
    order = np.lexsort((media, template))
    edges = np.searchsorted(template[order], np.arange(templates + 1))
    for number in range(templates):
        rows = order[edges[number] : edges[number + 1]]
        _, starts, counts = np.unique(media[rows], return_index=True, return_counts=True)
        means = np.add.reduceat(features[rows].astype(np.float64), starts, axis=0) / counts[:, None]
        result[number] = _unit(means.sum(axis=0, keepdims=True))[0]
    return result


def pair_scores(features: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dot product of the templates of each pair, by chunks; features float32 [T, d], positions [P] → float32 [P]."""
    result = np.empty(len(first), np.float32)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        rows = slice(start, start + PAIRS_AT_ONCE)
        np.einsum("pd,pd->p", features[first[rows]], features[second[rows]], out=result[rows])
    return result


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def verify_templates(ijb: IjbSet, features: np.ndarray) -> dict[str, Any]:
    """Figures of 1:1 from the features of all faces [F, d]: {"nearest": {far: tar}, "strict": {…}, "pairs": P}."""
    templates = template_features(features, ijb.template, ijb.media, len(ijb.template_ids))
    rates = metrics.tar_at_far(pair_scores(templates, ijb.first, ijb.second), ijb.issame)
    return {**rates, "pairs": len(ijb.issame)}


def evaluate_ijb(
    embed: Embed,
    folder: str | Path,
    *,
    use_detector_score: bool = True,
    use_norm: bool = True,
    flip: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Run the 1:1 protocol on a folder: {"1:1": {"nearest": {"1e-06": …, … "0.1": …}, "strict": {…}, "pairs": P}}.

    Arguments and errors as `load_ijb` and `embed_faces`.
    """
    ijb = load_ijb(folder)
    options = {"use_detector_score": use_detector_score, "use_norm": use_norm, "flip": flip}
    return {"1:1": verify_templates(ijb, embed_faces(embed, ijb, **options, progress=progress))}


def table(result: dict[str, Any]) -> PrettyTable:
    """Figures of 1:1 as a table for people."""
    rates = result["1:1"]
    out = PrettyTable(["TAR at FAR", *rates["nearest"]], align="r")
    for reading in ("nearest", "strict"):
        out.add_row([reading, *(f"{100 * value:.2f}" for value in rates[reading].values())])
    return out


def main(arguments: Sequence[str]) -> int | None:
    """Evaluate a model on an IJB-B or IJB-C folder, 1:1."""
    parser = argparse.ArgumentParser(prog="python -m eval.ijb", description=main.__doc__)
    parser.add_argument("model", help=".onnx file, .pt model file, or run folder")
    parser.add_argument("folder", metavar="DIR", help="folder with loose_crop/ and meta/")
    parser.add_argument("--json", metavar="OUT", help="write the results there")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--device", default="auto", help="for .pt models: cpu, cuda, … (default: auto)")
    for option, meaning in {
        "detector-score": "weigh faces by the detector's score",
        "norm": "weigh faces by their embedding's length",
        "flip": "add the mirror image",
    }.items():
        parser.add_argument(f"--{option}", action=argparse.BooleanOptionalAction, default=True, help=meaning)
    options = parser.parse_args(list(arguments))
    result = evaluate_ijb(
        load_embedder(options.model, options.threads, options.device).embed,
        options.folder,
        use_detector_score=options.detector_score,
        use_norm=options.norm,
        flip=options.flip,
        progress=True,
    )
    print(f"{options.folder}: {result['1:1']['pairs']} pairs, 1:1, percent")
    print(table(result))
    if options.json:
        write_json(options.json, result)
    return None


if __name__ == "__main__":
    run_command(main)
