"""Images to embeddings, with an ONNX file, a model file or a run.

Owns the opening of models for evaluation: what goes in is uint8 RGB [N, 112, 112, 3] whatever the model, what comes
out float32 [N, d], raw (not unit length). What the network takes (eval/pixels.py) is what the user says of it, else
what the file's metadata or its graph show (eval/onnx_input.py), else the field's: RGB, (pixel − 127.5) / 127.5.
Torch's networks are eval/torch_embedder.py's. A model file is somebody else's work: sizes and types are checked before
the first image (eval/onnx_file.py).
`python -m eval.embed` is a command on top of this, eval/embed_command.py. Proven by tests/eval/test_embed.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from eval.norm_quality import NormQuality, judged, quality_in
from eval.onnx_file import check_onnx_file, first_line
from eval.onnx_input import find_input, find_pixels
from eval.pixels import IMAGE_SIZE, Given, Pixels, normalise
from eval.torch_embedder import GPU_BATCH, TorchEmbedder, slices
from recognition.cpus import available_cpus
from recognition.errors import CheckpointError, NumericsError, SettingsError

__all__ = ["IMAGE_SIZE", "Embed", "Embedder", "OnnxEmbedder", "SeveralOutputsError", "TorchEmbedder",
           "check_onnx_file", "load_embedder", "normalise", "require_finite"]

# Images at once, of a model that takes any number. On a CPU what is computed has to stay in the cache: 64 at once are a
# third slower or more (docs/evaluation.md, "Measured").
ONNX_BATCH = 4
OUR_OUTPUTS = ("embedding", "quality")  # of this project's graphs with two; the first counts

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 RGB [n, 112, 112, 3] → float32 [n, d], raw


class SeveralOutputsError(CheckpointError):
    """A graph of which nobody said which output is the embedding."""


class Embedder(Protocol):
    """A model that is ready to embed.

    pixels: what is done to the images in front of the network.  notes: what was found of the model, for people.
    info: what its file says of itself, a model file's info or an ONNX file's metadata (as text).
    quality: the model's measure of quality, by the norm or by an output of its own; None where its file carries none.
    """

    name: str
    dim: int
    pixels: Pixels
    notes: list[str]
    info: Mapping[str, Any]
    quality: NormQuality | None

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embed uint8 RGB [N, 112, 112, 3] as float32 [N, dim], raw; ValueError on images of another kind."""
        ...

    def embed_and_judge(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """`embed`, and the quality z of the images, float32 [N]; None where `quality` is."""
        ...


def load_embedder(
    model: str | Path, threads: int | None = None, device: str = "auto", given: Given | None = None
) -> Embedder:
    """Open a model.

    Args:
        model: an .onnx file (run by onnxruntime), a .pt model file or bare state dict, or a run folder (its last
            model).
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
        if given.backbone:
            raise SettingsError(f"{model}: a backbone is said of a bare state dict, an ONNX file has its own")
        return OnnxEmbedder(model, threads, device, given)
    if given.input or given.output or given.layout:
        raise SettingsError(f"{model}: input, output and layout are of ONNX files")
    # Here and not above: whoever evaluates an ONNX file does not wait for torch.
    from recognition.backbones.model_file import load_model, resolve_model

    module, _, info = load_model(resolve_model(model), given.backbone)
    return TorchEmbedder(module, str(model), threads, device, given, info)


class OnnxEmbedder:
    """A network in an ONNX file; what is not given comes from its metadata and its graph.

    On a CPU every thread runs batches of its own through one session: the threads do not wait for each other, and the
    embeddings are the same numbers however many there are.
    """

    def __init__(self, path: Path, threads: int, device: str = "auto", given: Given | None = None) -> None:
        self.name = str(path)
        given = given or Given()
        model = check_onnx_file(path)
        providers = _providers(path, device)
        on_cpu = len(providers) == 1
        self._session = _open_session(path, 1 if on_cpu else threads, providers)
        if not on_cpu and "CUDAExecutionProvider" not in self._session.get_providers():
            # onnxruntime has the provider, but not the CUDA libraries that it needs, and goes on without a word.
            if device != "auto":
                raise SettingsError(f"{path}: device {device}: onnxruntime cannot start CUDA here")
            on_cpu = True
            self._session = _open_session(path, 1, ["CPUExecutionProvider"])
        self._callers = threads if on_cpu else 1
        self._input = find_input(self._session, model, self.name, given)
        self.batch_size = self._input.batch_size
        self.pixels, self.notes = find_pixels(model, path, self._input, given)
        self.info: Mapping[str, Any] = {entry.key: entry.value for entry in model.metadata_props}
        self._output, self.dim = self._find_output(given.output)
        names = [node.name for node in self._session.get_outputs()]
        self._gives_quality = self._output == OUR_OUTPUTS[0] and OUR_OUTPUTS[1] in names
        self.quality = quality_in(self.info, self.name, self._gives_quality)
        self._images_at_once = self.batch_size or self._largest_batch(ONNX_BATCH if on_cpu else GPU_BATCH)

    def _find_output(self, wanted: str | None) -> tuple[str, int]:
        names = [node.name for node in self._session.get_outputs()]
        if wanted is not None and wanted not in names:
            raise SettingsError(f"{self.name}: no output {wanted!r}; it has {names}")
        if wanted is None and set(names) == set(OUR_OUTPUTS):
            wanted = OUR_OUTPUTS[0]
        if wanted is None and len(names) != 1:
            raise SeveralOutputsError(f"{self.name}: expected one output, got {names}")
        output = wanted or names[0]
        # Asked, not read off the graph: shapes there may be left open, or wrong.
        probe = np.zeros((self.batch_size or 1, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        return output, self._run([output], probe)[0].shape[1]

    def _largest_batch(self, wanted: int) -> int:
        """`wanted`, or 1 where the graph says that it takes any number but has one written into its inside."""
        try:
            self._run([self._output], np.zeros((2, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32))
        except CheckpointError:
            self.notes.append("says that it takes any number of images, but takes only one at a time")
            return 1
        return wanted

    def _run(self, outputs: Sequence[str], batch: np.ndarray) -> list[np.ndarray]:
        try:
            result, *others = self._session.run(outputs, self._input.feed(batch))
        except Exception as error:
            raise CheckpointError(f"{self.name}: failed on {batch.shape[0]} images: {first_line(error)}") from None
        if result.ndim != 2 or len(result) != len(batch):
            raise CheckpointError(f"{self.name}: expected embeddings [{len(batch)}, d], got {list(result.shape)}")
        if any(other.size != len(batch) for other in others):
            raise CheckpointError(f"{self.name}: expected {OUR_OUTPUTS[1]} [{len(batch)}], got {list(others[0].shape)}")
        return [result, *(other.reshape(-1, 1) for other in others)]

    def embed(self, images: np.ndarray) -> np.ndarray:
        """See `Embedder`. A fixed batch size is honoured by filling the last batch up with grey."""
        return self._outputs([self._output], images)[0]

    def embed_and_judge(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Embedder`. The graph's own output `quality` comes first."""
        if self.quality is None or not self._gives_quality:
            return judged(self.embed(images), self.quality)
        embedding, z = self._outputs(OUR_OUTPUTS, images)
        return embedding, z[:, 0]

    def _outputs(self, names: Sequence[str], images: np.ndarray) -> list[np.ndarray]:
        """Outputs of the graph, float32 [N, dim] and, of the second one, [N, 1]."""
        results = [np.empty((len(images), width), np.float32) for width in (self.dim, 1)[: len(names)]]

        def fill(rows: slice) -> None:
            batch = self.pixels.prepare(images[rows])
            count = len(batch)
            if self.batch_size and count < self.batch_size:
                batch = np.concatenate([batch, np.zeros((self.batch_size - count, *batch.shape[1:]), np.float32)])
            found = self._run(names, batch)
            if found[0].shape[1] != self.dim:
                raise CheckpointError(f"{self.name}: expected {self.dim} numbers an image, got {found[0].shape[1]}")
            for result, values in zip(results, found, strict=True):
                result[rows] = values[:count]

        parts = slices(len(images), self._images_at_once)
        if self._callers == 1 or len(parts) < 2:
            for rows in parts:
                fill(rows)
            return results
        with ThreadPoolExecutor(min(self._callers, len(parts))) as pool:
            try:
                for _ in pool.map(fill, parts):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return results


def _open_session(path: Path, threads: int, providers: list[Any]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise CheckpointError(f"{path}: onnxruntime cannot open it: {first_line(error)}") from None


def _providers(path: Path, device: str) -> list[Any]:
    """Names that onnxruntime has for a device; the CPU behind the GPU takes what the GPU's provider lacks."""
    kind, _, number = device.partition(":")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise SettingsError(f"{path}: device {device}: expected auto, cpu, cuda, or a GPU's number as in cuda:1")
    has_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if kind == "cuda" and not has_gpu:
        raise SettingsError(f"{path}: device {device}: onnxruntime is installed without CUDA (package onnxruntime-gpu)")
    if kind == "cpu" or not has_gpu:
        return ["CPUExecutionProvider"]
    # TF32, which it would take by default, keeps 10 of float32's 23 bits.
    return [("CUDAExecutionProvider", {"device_id": number or "0", "use_tf32": "0"}), "CPUExecutionProvider"]


def require_finite(embeddings: np.ndarray, names: list[str] | None = None) -> None:
    """Raise NumericsError naming the images whose embedding is not finite; embeddings [N, d]."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        shown = ", ".join(names[i] if names else f"image {i}" for i in bad[:5])
        raise NumericsError(f"{len(bad)} of {len(embeddings)} embeddings are not finite: {shown}")


if __name__ == "__main__":
    from eval.embed_command import main  # not above: it is made of this file
    from recognition.errors import run_command

    run_command(main)
