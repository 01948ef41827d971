"""Images to embeddings with a network of torch: eval/embed.py's Embedder for model files, runs and their saves.

Owns the device and the precision. torch is imported where it is used: whoever evaluates an ONNX file does not wait for
it. Proven by tests/eval/test_embed.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.norm_quality import judged, quality_in
from eval.onnx_file import first_line
from eval.pixels import IMAGE_SIZE, Given, Pixels
from recognition.errors import SettingsError

# Images at once, see eval/embed.py.
TORCH_BATCH, GPU_BATCH = 8, 256


def refuse_tf32(device: Any) -> None:
    """On a torch device that is a GPU: let convolutions and products be float32, for the whole process."""
    import torch

    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def _open_device(device: str, name: str) -> Any:
    """The torch device of that name, after something was sent there and back; SettingsError where that fails."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()
    except Exception as error:  # each kind of device has errors of its own
        raise SettingsError(f"{name}: device {device}: {first_line(error)}") from None
    return found


class TorchEmbedder:
    """A backbone of this project, a torch module that takes float32 [n, 3, 112, 112]; `name` is for messages.

    It runs in float32, whatever it was trained in, and without TF32 on a GPU: figures of one model differ between
    devices by float32's rounding at most.
    """

    def __init__(
        self, module: Any, name: str, threads: int, device: str, given: Given | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        given = given or Given()
        default = Pixels()
        self.name = name
        self.pixels = Pixels(
            given.mean or default.mean, given.std or default.std, given.color_order or default.color_order
        )
        self.notes: list[str] = []
        self.info = info or {}
        self.quality = quality_in(self.info, name)
        self._torch = torch
        self._device = _open_device(device, name)
        refuse_tf32(self._device)
        self._module = module.to(self._device, memory_format=torch.channels_last).eval()  # faster on a CPU
        self._images_at_once = TORCH_BATCH if self._device.type == "cpu" else GPU_BATCH
        self.dim = self._run(np.zeros((1, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)).shape[1]

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            images = self._torch.from_numpy(batch).to(self._device, memory_format=self._torch.channels_last)
            embedding = self._module(images)
        return embedding.float().cpu().numpy()

    def embed(self, images: np.ndarray) -> np.ndarray:
        """See `Embedder`."""
        result = np.empty((len(images), self.dim), np.float32)
        for rows in slices(len(images), self._images_at_once):
            result[rows] = self._run(self.pixels.prepare(images[rows]))
        return result

    def embed_and_judge(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Embedder`."""
        return judged(self.embed(images), self.quality)


def slices(count: int, size: int) -> list[slice]:
    """`count` rows in slices of at most `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
