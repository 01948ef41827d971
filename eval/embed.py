"""Images to embeddings, with an ONNX file, a model file or a run.

Owns the opening of models for evaluation: what goes in is uint8 RGB [N, 112, 112, 3] whatever the model, what comes
out float32 [N, d], raw (not unit length). Normalisation, (pixel − 127.5) / 127.5, is done here, outside the graph. A
model file is somebody else's work: sizes and types are checked before the first image, and an ONNX file that keeps its
weights in other files may name only plain files beside or below it. Proven by tests/eval/test_embed.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime

from recognition.cpus import available_cpus
from recognition.errors import CheckpointError, NumericsError

IMAGE_SIZE = 112
BATCH_SIZE = 64  # of a model that takes any; larger ones gain nothing on a CPU

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 RGB [n, 112, 112, 3] → float32 [n, d], raw


class Embedder(Protocol):
    """A model that is ready to embed."""

    name: str
    dim: int

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embed uint8 RGB [N, 112, 112, 3] as float32 [N, dim], raw; ValueError on images of another kind."""
        ...


def load_embedder(model: str | Path, threads: int | None = None, device: str = "auto") -> Embedder:
    """Open a model.

    Args:
        model: an .onnx file (run by onnxruntime on the CPU), a .pt model file, or a run folder (its last model).
        threads: how many CPU threads to use; None = all this process may use.
        device: where a .pt model runs: "cpu", "cuda", "cuda:1", or "auto" = the first GPU if there is one.

    Raises:
        CheckpointError: missing, damaged, of other sizes than expected, or with weights where they must not be.
    """
    model = Path(model)
    threads = threads or available_cpus()
    if model.suffix == ".onnx":
        return OnnxEmbedder(model, threads)
    # Here and not above: whoever evaluates an ONNX file does not wait for torch.
    from recognition.backbones.model_file import load_model, resolve_model

    module, _, _ = load_model(resolve_model(model))
    return TorchEmbedder(module, str(model), threads, device)


class OnnxEmbedder:
    """A network in an ONNX file; the name, the batch size and the embedding size come from its graph."""

    def __init__(self, path: Path, threads: int) -> None:
        self.name = str(path)
        check_onnx_file(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class of their own
            raise CheckpointError(f"{path}: onnxruntime cannot open it: {_first_line(error)}") from None
        self._input, self.batch_size = self._read_input()
        self._output, self.dim = self._read_output()

    def _read_input(self) -> tuple[str, int | None]:
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise CheckpointError(f"{self.name}: expected one input, got {[node.name for node in inputs]}")
        (node,) = inputs
        expected = f"expected an input of float32 [N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}]"
        if node.type != "tensor(float)" or len(node.shape) != 4:
            raise CheckpointError(f"{self.name}: {expected}, got {node.name}: {node.type} {node.shape}")
        batch, *image = node.shape
        if any(isinstance(got, int) and got != want for got, want in zip(image, (3, 112, 112), strict=True)):
            raise CheckpointError(f"{self.name}: {expected}, got {node.name}: {node.shape}")
        return node.name, batch if isinstance(batch, int) else None

    def _read_output(self) -> tuple[str, int]:
        outputs = self._session.get_outputs()
        if len(outputs) != 1:
            raise CheckpointError(f"{self.name}: expected one output, got {[node.name for node in outputs]}")
        # Asked, not read off the graph: shapes there may be left open, or wrong.
        probe = np.zeros((self.batch_size or 1, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        return outputs[0].name, self._run(outputs[0].name, probe).shape[1]

    def _run(self, output: str, batch: np.ndarray) -> np.ndarray:
        try:
            (result,) = self._session.run([output], {self._input: batch})
        except Exception as error:
            raise CheckpointError(f"{self.name}: failed on {batch.shape[0]} images: {_first_line(error)}") from None
        if result.ndim != 2 or len(result) != len(batch):
            raise CheckpointError(f"{self.name}: expected embeddings [{len(batch)}, d], got {list(result.shape)}")
        return result

    def embed(self, images: np.ndarray) -> np.ndarray:
        """See `Embedder`. A fixed batch size is honoured by filling the last batch up with grey."""
        result = np.empty((len(images), self.dim), np.float32)
        for rows, batch in _batches(images, self.batch_size or BATCH_SIZE):
            count = len(batch)
            if self.batch_size and count < self.batch_size:
                batch = np.concatenate([batch, np.zeros((self.batch_size - count, *batch.shape[1:]), np.float32)])
            embedding = self._run(self._output, batch)[:count]
            if embedding.shape[1] != self.dim:
                raise CheckpointError(f"{self.name}: expected {self.dim} numbers an image, got {embedding.shape[1]}")
            result[rows] = embedding
        return result


class TorchEmbedder:
    """A backbone of this project, a torch module that takes float32 [n, 3, 112, 112]; `name` is for messages."""

    def __init__(self, module: Any, name: str, threads: int, device: str) -> None:
        import torch  # not above, see load_embedder

        torch.set_num_threads(threads)
        self.name = name
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
        for rows, batch in _batches(images, BATCH_SIZE):
            result[rows] = self._run(batch)
        return result


def normalise(images: np.ndarray) -> np.ndarray:
    """Network input of images: uint8 [N, 112, 112, 3] → float32 [N, 3, 112, 112], (pixel − 127.5) / 127.5."""
    expected = (IMAGE_SIZE, IMAGE_SIZE, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
        raise ValueError(f"expected uint8 images [N, 112, 112, 3], got {images.dtype} {list(images.shape)}")
    return np.ascontiguousarray(((images.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2))


def _batches(images: np.ndarray, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(images), size):
        rows = slice(start, min(start + size, len(images)))
        yield rows, normalise(images[rows])


def check_onnx_file(path: Path) -> None:
    """Refuse an ONNX file that is not one, or whose external weights could be any file of this machine.

    Weights outside the file may lie in plain files in its folder or below: no absolute path, no `..`, no symbolic
    link, no hard link, long enough for what is claimed of them. onnxruntime reads what it is told to.

    Raises:
        CheckpointError: as above; the tensor and the location are named.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, and whatever the file's bytes provoke
        raise CheckpointError(f"{path}: not an ONNX file: {_first_line(error)}") from None
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(path, tensor)


def _check_external(path: Path, tensor: Any) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    refused = f"{path}: weights of {tensor.name!r} at {location!r} refused"
    parts = Path(location).parts
    if not location or "\\" in location or ":" in location or Path(location).is_absolute() or ".." in parts:
        raise CheckpointError(f"{refused}: not a path inside the model's folder")
    file = path.parent
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise CheckpointError(f"{refused}: a symbolic link")
    if not file.is_file():
        raise CheckpointError(f"{refused}: no such plain file")
    status = file.stat()
    if status.st_nlink != 1:
        raise CheckpointError(f"{refused}: a hard link, the file has {status.st_nlink} names")
    try:
        start, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError:
        raise CheckpointError(f"{refused}: offset and length are not numbers") from None
    if start < 0 or length < 0 or start + length > status.st_size:
        raise CheckpointError(f"{refused}: bytes {start} to {start + length} of a file of {status.st_size}")


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto anywhere in a model: weights, constants, those in subgraphs, functions and sparse tensors."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if field.is_repeated else (value,):
            yield from _tensors(part)


def require_finite(embeddings: np.ndarray, names: list[str] | None = None) -> None:
    """Raise NumericsError naming the images whose embedding is not finite; embeddings [N, d]."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        shown = ", ".join(names[i] if names else f"image {i}" for i in bad[:5])
        raise NumericsError(f"{len(bad)} of {len(embeddings)} embeddings are not finite: {shown}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
