"""A folder of faces to a table of embeddings: `python -m eval.embed MODEL FOLDER OUT`.

    OUT.parquet, OUT.npz: columns or arrays, one row a picture, in the order of names or records
        file          path from FOLDER, or SHARD.rec:KEY
        label         whole number, of RecordIO sets only
        embedding     float32 [d], raw; with --flip that of the mirror image added
        norm          float32, of the image alone
        quality       float32, z-score of the raw embedding's norm, and
        recognizable  bool, whether it reaches the threshold; both only where the model carries what it takes
        about         JSON of the model's name, --flip, pixels and the three numbers of the quality

Pictures that cannot be used are named, counted and left out; none left is an error. `… MODEL compare A B` is
eval/compare_faces.py. Proven by tests/eval/test_embed_command.py.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval import compare_faces
from eval.crops_ahead import FACES_AT_ONCE, crops_ahead
from eval.embed import Embedder, require_finite
from eval.embedding_file import check_output, open_embeddings
from eval.model_options import add_model_options, open_model
from eval.picture_options import add_picture_options, face_maker
from eval.pictures import SIZE_HINT, FaceMaker, OtherSizeError, Pictures, open_pictures
from recognition.cpus import available_cpus
from recognition.errors import DataError, SettingsError

COMPARE = "compare"


def embed_pictures(
    embedder: Embedder, pictures: Pictures, faces: FaceMaker, out: Path, *, flip: bool = False,
    threads: int | None = None, progress: bool = False,
) -> tuple[int, int]:
    """Embed pictures into a file, see this file's first paragraph; returns how many were written and left out.

    Raises:
        DataError: not one could be used, or the file cannot be written. SettingsError: not one, and some are of another
            size: all of the folder will be. ReadingError: as FaceMaker.
        NumericsError: an embedding is not finite; the pictures are named.
    """
    total, left_out, other_size = len(pictures), 0, list[str]()
    blocks = (range(start, min(start + FACES_AT_ONCE, total)) for start in range(0, total, FACES_AT_ONCE))
    crop = partial(faces, pictures)
    with (
        open_embeddings(out, about(embedder, flip)) as add,
        closing(crops_ahead(crop, blocks, threads or available_cpus())) as ready,
        tqdm(total=total, desc=out.name, unit="picture", disable=None if progress else True, leave=False) as bar,
    ):
        for block, crops, problems in ready:
            other_size += [str(one) for one in problems.values() if isinstance(one, OtherSizeError)]
            _name([str(one) for one in problems.values() if not isinstance(one, OtherSizeError)])
            left_out += len(problems)
            if left_out < block.stop:  # one was usable; where none is, all of the folder will be photos
                _name(other_size)
                other_size.clear()
            if numbers := [number for number in block if number not in problems]:
                images = crops[[number - block.start for number in numbers]]
                add(_columns(embedder, pictures, numbers, images, flip))
            bar.update(len(block))
        if left_out == total and other_size:
            raise SettingsError(f"none of {total} pictures can be used, {len(other_size)} for their size: "
                                f"{other_size[0]}. {SIZE_HINT}")
        if left_out == total:
            raise DataError(f"none of {total} pictures can be used; {out} is not written")
    return total - left_out, left_out


def _name(lines: list[str]) -> None:
    for line in lines:
        tqdm.write(f"left out: {line}", file=sys.stderr)


def _columns(
    embedder: Embedder, pictures: Pictures, numbers: list[int], images: np.ndarray, flip: bool
) -> dict[str, Any]:
    names = [pictures.name(number) for number in numbers]
    straight, quality = embedder.embed_and_judge(images)
    embedding = straight + embedder.embed(np.ascontiguousarray(images[:, :, ::-1])) if flip else straight
    require_finite(embedding, names)
    columns: dict[str, Any] = {"file": names}
    if pictures.labels is not None:
        columns["label"] = pictures.labels[numbers].astype(np.int64)
    columns |= {"embedding": embedding, "norm": np.linalg.norm(straight, axis=1)}
    if quality is not None:
        assert embedder.quality is not None
        columns |= {"quality": quality, "recognizable": embedder.quality.recognizable(quality)}
    return columns


def about(embedder: Embedder, flip: bool) -> dict[str, Any]:
    """What holds for all rows: plain values, without folders of this machine."""
    quality = {} if embedder.quality is None else {
        f"quality_{name}": value for name, value in dataclasses.asdict(embedder.quality).items()
    }
    return {"model": Path(embedder.name).name, "flip": flip, "pixels": str(embedder.pixels), **quality}


def main(arguments: Sequence[str]) -> int | None:
    """Write the embeddings of a folder of aligned faces (or, with --detect, of photos) to a .parquet or .npz file."""
    arguments = list(arguments)
    if COMPARE in arguments:  # a folder of that name is ./compare
        arguments.remove(COMPARE)
        return compare_faces.main(arguments)
    options = _options(arguments)
    check_output(options.out)
    pictures = open_pictures(options.folder)
    threads = options.threads or available_cpus()
    faces = face_maker(options, threads)
    embedder = open_model(options)
    written, left_out = embed_pictures(
        embedder, pictures, faces, options.out, flip=options.flip, threads=threads, progress=True
    )
    print(f"{options.out}: {written} embeddings of {embedder.dim} numbers, {left_out} pictures left out")
    return None


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.embed", description=main.__doc__,
        epilog="python -m eval.embed MODEL compare A B [options] compares two pictures; its options: … compare --help",
    )
    add_model_options(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of pictures at any depth, a picture, or RecordIO")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write: NAME.parquet or NAME.npz")
    parser.add_argument("--flip", action="store_true", help="add the mirror image's embedding")
    add_picture_options(parser)
    return parser.parse_args(arguments)
