"""Faces of an IJB folder to embeddings: read, align, embed the image and its mirror, in one pass.

Owns the pass over the pictures. Threads read and align ahead of the network (eval/crops_ahead.py); what is embedded
goes into a cache where there is one (eval/ijb_cache.py) and comes from there the next time. An image that cannot be
read ends it: the network stops, the rest is only decoded, and all such images are named together.
Proven by tests/eval/test_ijb_faces.py.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from eval.crops_ahead import FACES_AT_ONCE, crops_ahead
from eval.embed import Embed, require_finite
from eval.ijb_cache import CHUNK, PARTS, EmbeddingCache
from eval.ijb_lists import IjbSet
from recognition.cpus import available_cpus
from recognition.data.align import align_face
from recognition.data.image_file import ImageError, decode_rgb
from recognition.errors import DataError

Todo = Sequence[tuple[range, Sequence[str]]]  # chunks of faces, and which of "straight" and "mirrored" of each
Parts = dict[str, np.ndarray]  # "straight" and maybe "mirrored" → float32 [n, d]


class Event(Protocol):
    """A threading.Event or one of multiprocessing's."""

    def set(self) -> None:
        """Tell all."""

    def is_set(self) -> bool:
        """Whether anybody told."""
        ...


class UnreadableImagesError(DataError):
    """Images that cannot be used: how many, and the first five lines of `problems`, one an image."""

    def __init__(self, problems: list[str]) -> None:
        several = f"{len(problems)} images cannot be used: " if len(problems) > 1 else ""
        super().__init__(several + "; ".join(problems[:5]) + ("; …" if len(problems) > 5 else ""))
        self.problems = problems

    def __reduce__(self) -> tuple[Any, ...]:
        return UnreadableImagesError, (self.problems,)  # between processes


def crop_face(ijb: IjbSet, number: int) -> np.ndarray:
    """Read and align one face, uint8 RGB [112, 112, 3]; DataError naming the image when that is impossible."""
    path = ijb.folder / "loose_crop" / ijb.images[number]
    try:
        return align_face(decode_rgb(path.read_bytes()), ijb.landmarks[number])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ImageError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


def embed_chunks(
    embed: Embed,
    ijb: IjbSet,
    todo: Todo,
    threads: int,
    done_of: Callable[[int], object] = lambda faces: None,
    spoilt: Event | None = None,
) -> Generator[tuple[range, Parts], None, None]:
    """Embed chunks of faces, each the parts (of "straight" and "mirrored") that are asked of it.

    Args:
        embed: images → raw embeddings.
        ijb: the set.
        todo: chunks and their parts.
        threads: that read and align.
        done_of: told how many faces were done since it was told last.
        spoilt: set as soon as an image cannot be read, here or in another process; nothing is embedded from then on.

    Raises:
        UnreadableImagesError: all of those in `todo`. NumericsError: an embedding is not finite; the images are named.
    """
    blocks = (rows[at : at + FACES_AT_ONCE] for rows, _ in todo for at in range(0, len(rows), FACES_AT_ONCE))
    problems: list[str] = []
    spoilt = spoilt or threading.Event()
    with closing(crops_ahead(partial(crop_face, ijb), blocks, threads)) as ready:
        for rows, parts in todo:
            done: dict[str, list[np.ndarray]] = {part: [] for part in parts}
            whole = True
            for _ in range(0, len(rows), FACES_AT_ONCE):
                block, crops, unreadable = next(ready)
                if unreadable:
                    problems += map(str, unreadable.values())
                    spoilt.set()
                whole = whole and not spoilt.is_set()
                if whole:
                    _embed_block(embed, crops, [ijb.images[number] for number in block], done)
                done_of(len(block))
            if whole:
                yield rows, {part: np.concatenate(blocks_done) for part, blocks_done in done.items()}
    if problems:
        raise UnreadableImagesError(problems)


def _embed_block(embed: Embed, crops: np.ndarray, names: list[str], done: dict[str, list[np.ndarray]]) -> None:
    for part, blocks in done.items():
        embedding = embed(crops if part == "straight" else np.ascontiguousarray(crops[:, :, ::-1]))
        require_finite(embedding, names)
        blocks.append(embedding)


def missing_chunks(cache: EmbeddingCache, flip: bool) -> Todo:
    """What a cache has no file of: chunks and their parts."""
    parts = PARTS if flip else PARTS[:1]
    lacking = [(rows, [part for part in parts if not cache.has(part, rows)]) for rows in cache.chunks()]
    return [(rows, missing) for rows, missing in lacking if missing]


def embed_faces(
    embed: Embed,
    ijb: IjbSet,
    *,
    use_detector_score: bool = True,
    use_norm: bool = True,
    flip: bool = True,
    progress: bool = False,
    cache: EmbeddingCache | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Embed every face; float32 [F, d].

    Args:
        embed: images → raw embeddings.
        ijb: the set.
        use_detector_score: multiply by the detector's score.
        use_norm: keep the length, which weighs quality; otherwise unit length before the score.
        flip: add the mirror image's embedding.
        progress: show a bar, on terminals.
        cache: embeddings of this model and set that are there are used, others are added.
        threads: that read and align; None = one a processor.

    Raises:
        DataError: images cannot be read, or the cache cannot be written. NumericsError: an embedding is not finite; the
            images are named.
    """
    wanted = PARTS if flip else PARTS[:1]
    features, todo = _from_cache(cache, ijb, wanted) if cache else (None, _everything(ijb, wanted))
    total, left = len(ijb.images), sum(len(rows) for rows, _ in todo)
    with (
        progress_bar(ijb, progress, total - left) as bar,
        closing(embed_chunks(embed, ijb, todo, threads or available_cpus(), bar.update)) as chunks,
    ):
        for rows, parts in chunks:
            dim = next(iter(parts.values())).shape[1]
            if features is None:
                features = np.zeros((total, dim), np.float32)
                if cache:
                    cache.require_space(len(todo) * len(wanted), dim)
            for part, embedding in parts.items():
                features[rows.start : rows.stop] += embedding
                if cache:
                    cache.write(part, rows, embedding)
    assert features is not None  # a set without faces was refused
    if not use_norm:
        for start in range(0, total, CHUNK):  # in place: IJB-C's are a gigabyte
            features[start : start + CHUNK] = unit(features[start : start + CHUNK])
    if use_detector_score:
        features *= ijb.scores[:, None].astype(np.float32)
    return features


def progress_bar(ijb: IjbSet, show: bool, done: int) -> tqdm:
    """A bar over all faces, of which some were done before; on terminals, if at all."""
    hide = None if show else True
    return tqdm(total=len(ijb.images), initial=done, desc=ijb.name, unit="face", disable=hide, leave=False)


def _everything(ijb: IjbSet, wanted: Sequence[str]) -> Todo:
    total = len(ijb.images)
    return [(range(start, min(start + CHUNK, total)), wanted) for start in range(0, total, CHUNK)]


def _from_cache(cache: EmbeddingCache, ijb: IjbSet, wanted: Sequence[str]) -> tuple[np.ndarray | None, Todo]:
    """Sums of the parts that a cache has, float32 [F, d] (None: it has nothing), and what it lacks."""
    features: np.ndarray | None = None
    todo: list[tuple[range, Sequence[str]]] = []
    for rows in cache.chunks():
        lacking: list[str] = []
        for part in wanted:
            embedding = cache.read(part, rows)
            if embedding is None:
                lacking.append(part)
                continue
            if features is None:
                features = np.zeros((len(ijb.images), embedding.shape[1]), np.float32)
            features[rows.start : rows.stop] += embedding
        if lacking:
            todo.append((rows, lacking))
    return features, todo


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)
