"""Images to embeddings, with an ONNX file, a model file or a run.

Owns the opening of models for evaluation: what goes in is uint8 RGB [N, 112, 112, 3] whatever the model, what comes
out float32 [N, d], raw (not unit length). What the network takes (eval/pixels.py) is what the user says of it, else
what the file's metadata or its graph show (eval/onnx_input.py), else the field's: RGB, (pixel − 127.5) / 127.5.
A model file is somebody else's work: sizes and types are checked before the first image (eval/onnx_file.py).
Proven by tests/eval/test_embed.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from eval.onnx_file import check_onnx_file, first_line
from eval.onnx_input import find_input, find_pixels
from eval.pixels import IMAGE_SIZE, Given, Pixels, normalise
from recognition.cpus import available_cpus
from recognition.errors import CheckpointError, NumericsError, SettingsError

__all__ = ["IMAGE_SIZE", "Embed", "Embedder", "OnnxEmbedder", "TorchEmbedder", "check_onnx_file", "load_embedder",
           "normalise", "require_finite"]

BATCH_SIZE = 64  # of a model that takes any; larger ones gain nothing on a CPU

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 RGB [n, 112, 112, 3] → float32 [n, d], raw


class Embedder(Protocol):
    """A model that is ready to embed.

    pixels: what is done to the images in front of the network.  notes: what was found of the model, for people.
    """

    name: str
    dim: int
    pixels: Pixels
    notes: list[str]

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embed uint8 RGB [N, 112, 112, 3] as float32 [N, dim], raw; ValueError on images of another kind."""
        ...


def load_embedder(
    model: str | Path, threads: int | None = None, device: str = "auto", given: Given | None = None
) -> Embedder:
    """Open a model.

    Args:
        model: an .onnx file (run by onnxruntime), a .pt model file, or a run folder (its last model).
        threads: how many CPU threads to use; None = all this process may use.
        device: "cpu", "cuda", "cuda:1", or "auto" = the first GPU if there is one that the runtime can use.
        given: what is known of the model; the rest is found out.

    Raises:
        CheckpointError: missing, damaged, of other sizes than expected, or with weights where they must not be.
        SettingsError: the model has no such input, output or layout, or the runtime no such device.
    """
    model, given = Path(model), given or Given()
    threads = threads or available_cpus()
    if model.suffix == ".onnx":
        return OnnxEmbedder(model, threads, device, given)
    if given.input or given.output or given.layout:
        raise SettingsError(f"{model}: input, output and layout are of ONNX files")
    # Here and not above: whoever evaluates an ONNX file does not wait for torch.
    from recognition.backbones.model_file import load_model, resolve_model

    module, _, _ = load_model(resolve_model(model))
    return TorchEmbedder(module, str(model), threads, device, given)


class OnnxEmbedder:
    """A network in an ONNX file; what is not given comes from its metadata and its graph."""

    def __init__(self, path: Path, threads: int, device: str = "auto", given: Given | None = None) -> None:
        self.name = str(path)
        given = given or Given()
        model = check_onnx_file(path)
        self._session = _open_session(path, threads, device)
        self._input = find_input(self._session, model, self.name, given)
        self.batch_size = self._input.batch_size
        self.pixels, self.notes = find_pixels(model, path, self._input, given)
        self._output, self.dim = self._find_output(given.output)

    def _find_output(self, wanted: str | None) -> tuple[str, int]:
        names = [node.name for node in self._session.get_outputs()]
        if wanted is not None and wanted not in names:
            raise SettingsError(f"{self.name}: no output {wanted!r}; it has {names}")
        if wanted is None and len(names) != 1:
            raise CheckpointError(f"{self.name}: expected one output, got {names}; --output says which")
        output = wanted or names[0]
        # Asked, not read off the graph: shapes there may be left open, or wrong.
        probe = np.zeros((self.batch_size or 1, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        return output, self._run(output, probe).shape[1]

    def _run(self, output: str, batch: np.ndarray) -> np.ndarray:
        try:
            (result,) = self._session.run([output], self._input.feed(batch))
        except Exception as error:
            raise CheckpointError(f"{self.name}: failed on {batch.shape[0]} images: {first_line(error)}") from None
        if result.ndim != 2 or len(result) != len(batch):
            raise CheckpointError(f"{self.name}: expected embeddings [{len(batch)}, d], got {list(result.shape)}")
        return result

    def embed(self, images: np.ndarray) -> np.ndarray:
        """See `Embedder`. A fixed batch size is honoured by filling the last batch up with grey."""
        result = np.empty((len(images), self.dim), np.float32)
        for rows, batch in _batches(images, self.batch_size or BATCH_SIZE, self.pixels):
            count = len(batch)
            if self.batch_size and count < self.batch_size:
                batch = np.concatenate([batch, np.zeros((self.batch_size - count, *batch.shape[1:]), np.float32)])
            embedding = self._run(self._output, batch)[:count]
            if embedding.shape[1] != self.dim:
                raise CheckpointError(f"{self.name}: expected {self.dim} numbers an image, got {embedding.shape[1]}")
            result[rows] = embedding
        return result


def _open_session(path: Path, threads: int, device: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=_providers(path, device))
    except SettingsError:
        raise
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise CheckpointError(f"{path}: onnxruntime cannot open it: {first_line(error)}") from None


def _providers(path: Path, device: str) -> list[Any]:
    """Names that onnxruntime has for a device; the CPU behind the GPU takes what the GPU's provider lacks."""
    kind, _, number = device.partition(":")
    has_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if kind == "cuda" and not has_gpu:
        raise SettingsError(f"{path}: device {device}: onnxruntime is installed without CUDA (package onnxruntime-gpu)")
    if kind == "cpu" or not has_gpu:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": number or "0"}), "CPUExecutionProvider"]


class TorchEmbedder:
    """A backbone of this project, a torch module that takes float32 [n, 3, 112, 112]; `name` is for messages."""

    def __init__(self, module: Any, name: str, threads: int, device: str, given: Given | None = None) -> None:
        import torch  # not above, see load_embedder

        torch.set_num_threads(threads)
        given = given or Given()
        default = Pixels()
        self.name = name
        self.pixels = Pixels(
            given.mean or default.mean, given.std or default.std, given.color_order or default.color_order
        )
        self.notes: list[str] = []
        self._torch = torch
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._module = module.to(self._device).eval()
        self.dim = self._run(np.zeros((1, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)).shape[1]

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            embedding = self._module(self._torch.from_numpy(batch).to(self._device))
        return embedding.float().cpu().numpy()

    def embed(self, images: np.ndarray) -> np.ndarray:
        """See `Embedder`."""
        result = np.empty((len(images), self.dim), np.float32)
        for rows, batch in _batches(images, BATCH_SIZE, self.pixels):
            result[rows] = self._run(batch)
        return result


def _batches(images: np.ndarray, size: int, pixels: Pixels) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(images), size):
        rows = slice(start, min(start + size, len(images)))
        yield rows, pixels.prepare(images[rows])


def require_finite(embeddings: np.ndarray, names: list[str] | None = None) -> None:
    """Raise NumericsError naming the images whose embedding is not finite; embeddings [N, d]."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        shown = ", ".join(names[i] if names else f"image {i}" for i in bad[:5])
        raise NumericsError(f"{len(bad)} of {len(embeddings)} embeddings are not finite: {shown}")
