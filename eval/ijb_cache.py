"""Embeddings of an IJB folder's faces on disk, so that a killed run goes on and another option needs no new pass.

    FOLDER/KEY/made_from.json                   whose embeddings these are
    FOLDER/KEY/straight_000000_DIGEST.npy       float32 [≤ CHUNK, d] of faces 0 … CHUNK − 1; mirrored_… likewise

KEY is the hash of made_from.json: the model file's SHA-256, what is done to pixels in front of it, and that of the
faces' names, sizes, times of change and landmarks. Another model, another set, other pixels: another KEY. DIGEST begins
the SHA-256 of the file, so a chunk is complete and unharmed or it is not used. Images and mirror images stand apart,
before detector score and norm. IJB-C takes 469,375 faces × 2 × 512 × 4 bytes = 1.9 GB.
Proven by tests/eval/test_ijb_cache.py.
"""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from eval.embed import Embedder
from eval.ijb_lists import IjbSet
from eval.onnx_file import check_onnx_file, tensors_of
from eval.pixels import Given, Pixels
from recognition.errors import CheckpointError, DataError

CHUNK = 1024  # faces a file: 2 MB, and what a kill loses at the most
PARTS = ("straight", "mirrored")
STALE_SECONDS = 3600  # a file still being written after that belongs to a process that was killed


def open_unchanged(
    model: str | Path, opener: Callable[[], Embedder], expected: list[str] | None = None
) -> tuple[Embedder, list[str]]:
    """Open a model whose files are hashed before and after, so that what was opened is what the hashes say.

    Args:
        model: as for `model_identity`.
        opener: opens it.
        expected: what `model_hashes` gave elsewhere.

    Raises:
        CheckpointError: the files changed meanwhile, or are not those expected; and what the opener raises.
    """
    before = model_hashes(model)
    if expected is not None and before != expected:
        raise CheckpointError(f"{model}: changed since the command began; start it again")
    embedder = opener()
    if model_hashes(model) != before:
        raise CheckpointError(f"{model}: changed while it was opened; start the command again")
    return embedder, before


def model_hashes(model: str | Path) -> list[str]:
    """SHA-256 of a model's file, and of the files that hold its weights, if any."""
    return [file_sha256(path) for path in _model_files(Path(model))]


def model_identity(
    model: str | Path, pixels: Pixels, given: Given | None = None, hashes: list[str] | None = None
) -> dict[str, Any]:
    """What embeddings depend on besides the faces: a model file's SHA-256, the pixels, the graph's input and output.

    Args:
        model: an .onnx file (with the files that hold its weights, if any), a .pt file or a run folder.
        pixels: what is done to them, as found (`Embedder.pixels`).
        given: what the user said of the model.
        hashes: of the files, as `open_unchanged` gave them; None = as they are now.
    """
    given = given or Given()
    chosen = {"input": given.input, "layout": given.layout, "output": given.output}
    if given.backbone:
        chosen["backbone"] = given.backbone
    files = model_hashes(model) if hashes is None else hashes
    return {"sha256": files[0], "weights": files[1:], "pixels": dataclasses.asdict(pixels), **chosen}


def _model_files(model: Path) -> list[Path]:
    if model.suffix == ".onnx":
        return [model, *external_files(model)]
    from recognition.backbones.model_file import resolve_model  # torch: not for those who evaluate an ONNX file

    return [resolve_model(model)]


def external_files(model: Path) -> list[Path]:
    """The files that hold an ONNX file's weights, if it has none itself; CheckpointError as `check_onnx_file`."""
    tensors = [tensor for tensor in tensors_of(check_onnx_file(model)) if tensor.external_data]
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return [model.parent / name for name in sorted(names)]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits; CheckpointError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def default_cache(model: str | Path) -> Path:
    """Where embeddings go if nobody says: RUN/ijb_cache for a run's models, else the user's cache folder."""
    model = Path(model)
    folder = model if model.is_dir() else model.parent
    if (folder / "config.json").is_file():
        return folder / "ijb_cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "face-recognition-trainer" / "ijb"


def faces_digest(ijb: IjbSet) -> str:
    """SHA-256 of what goes into the network: the images' names, sizes and times, and the landmarks, in order."""
    digest = hashlib.sha256()
    for name in ijb.images:
        digest.update(name.encode() + b"\n")
    digest.update(np.ascontiguousarray(ijb.states, "<i8").tobytes())
    digest.update(np.ascontiguousarray(ijb.landmarks, "<f8").tobytes())
    return digest.hexdigest()


class EmbeddingCache:
    """Chunks of one model's embeddings of one folder's faces."""

    def __init__(self, folder: str | Path, model: dict[str, Any], ijb: IjbSet) -> None:
        """Open, or begin, a cache in a folder that may hold others; `model` as `model_identity` gives it."""
        made_from = {"format": 2, "model": model, "faces": faces_digest(ijb), "count": len(ijb.images), "chunk": CHUNK}
        text = json.dumps(made_from, sort_keys=True, indent=1)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.total = len(ijb.images)
        self.damaged = 0  # chunks that were thrown away
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sign(self.folder / "made_from.json", text)
            self._tidy()
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def _sign(self, path: Path, text: str) -> None:
        if path.exists() and path.read_text(errors="replace") == text:
            return
        for chunk in self.folder.glob("*.npy"):  # of whom nobody can tell
            chunk.unlink(missing_ok=True)
        self._replace(path, text.encode())

    def _tidy(self) -> None:
        for path in self.folder.glob("*.part"):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)

    def _replace(self, path: Path, content: bytes) -> None:
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        unfinished.write_bytes(content)
        os.replace(unfinished, path)

    def chunks(self) -> list[range]:
        """The faces of each chunk."""
        return [range(start, min(start + CHUNK, self.total)) for start in range(0, self.total, CHUNK)]

    def has(self, part: str, rows: range) -> bool:
        """Whether there is a file for a chunk; only `read` tells whether it is good."""
        return any(self.folder.glob(f"{part}_{rows.start:06d}_*.npy"))

    def read(self, part: str, rows: range) -> np.ndarray | None:
        """Embeddings of a chunk, float32 [n, d]; None where there are none. A damaged file is removed and counted."""
        for path in self.folder.glob(f"{part}_{rows.start:06d}_*.npy"):
            try:
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest()[:16] == path.stem.rsplit("_", 1)[1]:
                    embeddings = np.load(io.BytesIO(content), allow_pickle=False)
                    if embeddings.ndim == 2 and len(embeddings) == len(rows):
                        return embeddings
            except (OSError, ValueError):
                pass  # as good as damaged
            self.damaged += 1
            path.unlink(missing_ok=True)
        return None

    def write(self, part: str, rows: range, embeddings: np.ndarray) -> None:
        """Keep a chunk's embeddings [n, d]; DataError when the disk does not take them."""
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(embeddings, np.float32), allow_pickle=False)
        digest = hashlib.sha256(content.getvalue()).hexdigest()[:16]
        try:
            self._replace(self.folder / f"{part}_{rows.start:06d}_{digest}.npy", content.getvalue())
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def require_space(self, chunks: int, dim: int) -> None:
        """DataError unless the disk has room for so many more chunks of `dim` numbers a face."""
        needed, free = chunks * CHUNK * dim * 4, shutil.disk_usage(self.folder).free
        if needed > free:
            need = f"{needed / 1e9:.2f} GB of embeddings, {free / 1e9:.2f} GB are free"
            raise DataError(f"{self.folder}: no room for {need}; --cache puts them elsewhere, --no-cache does without")


def _unwritable(folder: Path, error: OSError) -> DataError:
    remedy = "--cache puts embeddings elsewhere, --no-cache does without"
    return DataError(f"{folder}: cannot be written: {error.strerror}; {remedy}")
