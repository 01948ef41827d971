"""Closed-set identification of small faces, as TinyFace: probes searched in a gallery with distractors.

Owns the reading of such a folder and the protocol on it: f(x) + f(mirror), unit length, every probe against the gallery
and the distractors by dot product; rank-1, 5, 10, 20, 50 and mean average precision. The counting is eval/metrics'.
`load_identification` reads, `evaluate_identification` is the rest, `python -m eval.identification MODEL DIR` prints a
table and writes JSON.

DIR in one of two forms, found in DIR itself or in DIR/Testing_Set:

    Probe/ Gallery_Match/ Gallery_Distractor/      pictures `ID_anything.jpg`, or folders `ID/` of pictures
    probe.txt gallery.txt distractor.txt           a line a picture: `path ID`, of distractors `path`; from the list

Distractors may be missing and have no identity. A picture that is not 112×112 is resized as a whole, its sides each by
themselves: TinyFace's are loose crops of about 20 pixels without landmarks, and that is what its published figures
do. Proven by tests/eval/test_identification.py, against the protocol written out probe by probe.
"""

import argparse
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
from eval.verification import embed_with_mirror, write_json
from recognition.data.image_file import ImageError, decode_rgb, image_size
from recognition.errors import DataError, run_command

RANKS = (1, 5, 10, 20, 50)
FOLDERS = {"probe": "Probe", "gallery": "Gallery_Match", "distractor": "Gallery_Distractor"}
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FACES_AT_ONCE = 256  # pictures in memory
MEGABYTES = 512  # of similarities at a time


@dataclass(frozen=True)
class IdentificationSet:
    """Whose pictures are where; subjects are names, those of distractors are not there."""

    name: str
    probe: list[Path]  # [n]
    probe_subject: list[str]  # [n]
    gallery: list[Path]  # [m]
    gallery_subject: list[str]  # [m]
    distractor: list[Path]


def load_identification(folder: str | Path) -> IdentificationSet:
    """Read which pictures there are, in either form (see the file's head), and look at every picture's header.

    Raises:
        DataError: no probes or no gallery, a picture without identity, a line that is not what it should be, pictures
            that are missing or none (named).
    """
    given = Path(folder)
    for place in (given, given / "Testing_Set"):
        if (place / FOLDERS["probe"]).is_dir():
            parts = {role: _read_folder(place / name, role) for role, name in FOLDERS.items()}
            break
        if (place / "probe.txt").is_file():
            parts = {role: _read_list(place / f"{role}.txt", role) for role in FOLDERS}
            break
    else:
        raise DataError(f"{given}: expected a folder Probe or a list probe.txt there or in Testing_Set")
    for role in ("probe", "gallery"):
        if not parts[role]:
            raise DataError(f"{place}: no pictures in the {role}")
    _require_pictures([path for pairs in parts.values() for path, _ in pairs])
    probe, gallery, distractor = (parts[role] for role in FOLDERS)
    return IdentificationSet(
        given.resolve().name,
        [path for path, _ in probe], [subject for _, subject in probe],
        [path for path, _ in gallery], [subject for _, subject in gallery],
        [path for path, _ in distractor],
    )  # fmt: skip


def _read_folder(folder: Path, role: str) -> list[tuple[Path, str]]:
    """Pictures and their subjects: the role's folder that they are below, else the name up to its first `_`."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if role == "distractor":
        return [(path, "") for path in paths]
    nameless = [path for path in paths if path.parent == folder and "_" not in path.stem]
    if nameless:
        raise DataError(f"{folder}: {len(nameless)} pictures are not named ID_…: {_some(nameless)}")
    below = [path.relative_to(folder).parts for path in paths]
    return [(path, one[0] if len(one) > 1 else path.name.partition("_")[0])
            for path, one in zip(paths, below, strict=True)]


def _read_list(path: Path, role: str) -> list[tuple[Path, str]]:
    if role == "distractor" and not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if role == "distractor":
            name, subject = line.strip(), "-"
        else:
            name, _, subject = (part.strip() for part in line.strip().rpartition(" " if "\t" not in line else "\t"))
        if not name or not subject:
            wanted = "path" if role == "distractor" else "path identity"
            raise DataError(f"{path}: line {number}: expected `{wanted}`, got {line[:80]!r}")
        pairs.append((path.parent / name, subject))
    return pairs


def _require_pictures(paths: list[Path]) -> None:
    """Look at every header before the first embedding: what is broken shows now, not after an hour."""
    bad, reason = [], ""
    for path in paths:
        try:
            image_size(path.read_bytes())
        except (OSError, ImageError) as error:
            bad.append(path)
            reason = reason or str(getattr(error, "strerror", None) or error)
    if bad:
        raise DataError(f"{len(bad)} of {len(paths)} pictures cannot be read: {_some(bad)} ({reason})")


def _some(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths[:5]) + (", …" if len(paths) > 5 else "")


def read_face(path: Path) -> np.ndarray:
    """A picture as RGB uint8 [112, 112, 3], resized as a whole: bilinear up, area averages where it gets smaller.

    Raises DataError naming the picture when it cannot be read.
    """
    try:
        image = decode_rgb(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None
    if image.shape[:2] == (IMAGE_SIZE, IMAGE_SIZE):
        return image
    smaller = min(image.shape[:2]) > IMAGE_SIZE
    return cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def embed_files(embed: Embed, paths: list[Path], flip: bool, bar: tqdm) -> tuple[np.ndarray, float | None]:
    """Embeddings of pictures, float32 [n, d], unit length (a zero vector stays zero), and the mean norm of single ones.

    Raises:
        DataError: a picture that cannot be read. NumericsError: an embedding is not finite; the pictures are named.
    """
    features, norms = [], []
    for start in range(0, len(paths), FACES_AT_ONCE):
        part = paths[start : start + FACES_AT_ONCE]
        images = np.stack([read_face(path) for path in part])
        if flip:
            embedding, norm = embed_with_mirror(embed, images)
        else:
            embedding = embed(images)
            norm = np.linalg.norm(embedding, axis=1)
        require_finite(embedding, [str(path) for path in part])
        length = np.linalg.norm(embedding, axis=1, keepdims=True)
        features.append(embedding / np.where(length > 0, length, 1))
        norms.append(norm)
        bar.update(len(part))
    if not paths:
        return np.empty((0, 0), np.float32), None
    return np.concatenate(features), float(np.mean(np.concatenate(norms)))


def evaluate_identification(
    embed: Embed, pictures: IdentificationSet, *, flip: bool = True, progress: bool = False
) -> dict[str, Any]:
    """Run the protocol.

    Returns:
        {"set", "probes", "gallery", "distractors", "without_mate", "rank1", …, "rank50", "map", "map_steps",
        "mean_norm": {"probe", "gallery", "distractor"}}. Probes whose subject is not in the gallery are counted in
        `without_mate` and left out of the figures, which are None when there is no other. `map` is TinyFace's own
        reading, `map_steps` scikit-learn's, see `metrics.mean_average_precision`.

    Raises:
        DataError, NumericsError: as `embed_files`.
    """
    paths = {"probe": pictures.probe, "gallery": pictures.gallery, "distractor": pictures.distractor}
    features, norms = {}, {}
    total = sum(len(part) for part in paths.values())
    title = pictures.name
    with tqdm(total=total, desc=title, unit="picture", disable=None if progress else True, leave=False) as bar:
        for role, part in paths.items():
            features[role], norms[role] = embed_files(embed, part, flip, bar)
    gallery = features["gallery"]
    subjects = np.array(pictures.gallery_subject)
    if pictures.distractor:
        gallery = np.concatenate([gallery, features["distractor"]])
        subjects = np.concatenate([subjects, np.full(len(pictures.distractor), "")])  # nobody's name is empty
    found = metrics.search_gallery(
        features["probe"], gallery, np.array(pictures.probe_subject), subjects, megabytes=MEGABYTES
    )
    return {
        "set": pictures.name,
        "probes": len(pictures.probe),
        "gallery": len(pictures.gallery),
        "distractors": len(pictures.distractor),
        "without_mate": int(np.count_nonzero(~found.mated)),
        **{f"rank{k}": metrics.rank_k(found, k) for k in RANKS},
        "map": metrics.mean_average_precision(found, trapezoid=True),
        "map_steps": metrics.mean_average_precision(found),
        "mean_norm": norms,
    }


def table(result: dict[str, Any]) -> PrettyTable:
    """Figures as a table for people, in percent."""
    keys = [*(f"rank{k}" for k in RANKS), "map"]
    out = PrettyTable([*(f"rank-{k}" for k in RANKS), "mAP", "mean norm of probes"], align="r")
    out.add_row(
        [*("–" if result[key] is None else f"{100 * result[key]:.2f}" for key in keys),
         f"{result['mean_norm']['probe']:.2f}"]
    )  # fmt: skip
    return out


def main(arguments: Sequence[str]) -> int | None:
    """Search probes in a gallery with distractors, as TinyFace."""
    parser = argparse.ArgumentParser(prog="python -m eval.identification", description=main.__doc__)
    add_model_options(parser)
    parser.add_argument("folder", metavar="DIR", help="with Probe/ Gallery_Match/ Gallery_Distractor/, or lists")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="add the mirror image")
    parser.add_argument("--json", metavar="OUT", help="write the results there")
    options = parser.parse_args(list(arguments))
    pictures = load_identification(options.folder)
    result = evaluate_identification(open_model(options).embed, pictures, flip=options.flip, progress=True)
    counts = "{probes} probes, {gallery} in the gallery, {distractors} distractors".format(**result)
    print(f"{options.folder}: {counts}, percent")
    if result["without_mate"]:
        print(f"{result['without_mate']} probes have no mate in the gallery and are left out")
    print(table(result))
    if options.json:
        write_json(options.json, result)
    return None


if __name__ == "__main__":
    run_command(main)
