"""From pictures to what a network takes: colour order, mean, standard deviation.

Owns the rule that pictures are uint8 RGB [N, 112, 112, 3] everywhere in this project, and what is done to them in
front of a network: channels put into its order, then (pixel − mean) / std. `Given` is what a user says of a model,
`Pixels` what holds in the end. mean and std are of pixels from 0 to 255, in the network's order of the channels.
Proven by tests/eval/test_embed.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

IMAGE_SIZE = 112
COLOR_ORDERS = ("RGB", "BGR")
LAYOUTS = ("NCHW", "NHWC")

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Given:
    """What a user says of a model; None: to be found out.

    mean, std: one a channel.  color_order: RGB or BGR.  input, layout (NCHW or NHWC), output: of an ONNX graph.
    backbone: of a bare state dict.
    """

    mean: Triple | None = None
    std: Triple | None = None
    color_order: str | None = None
    input: str | None = None
    layout: str | None = None
    output: str | None = None
    backbone: str | None = None


@dataclass(frozen=True)
class Pixels:
    """What is done to pictures in front of a network; the default is the field's, (pixel − 127.5) / 127.5 on RGB."""

    mean: Triple = (127.5, 127.5, 127.5)
    std: Triple = (127.5, 127.5, 127.5)
    color_order: str = "RGB"

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Network input of images: uint8 RGB [N, 112, 112, 3] → float32 [N, 3, 112, 112]; ValueError for others."""
        expected = (IMAGE_SIZE, IMAGE_SIZE, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"expected uint8 images [N, 112, 112, 3], got {images.dtype} {list(images.shape)}")
        if self.color_order == "BGR":
            images = images[..., ::-1]
        planes = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        planes -= np.array(self.mean, np.float32)[:, None, None]
        planes /= np.array(self.std, np.float32)[:, None, None]
        return planes

    def __str__(self) -> str:
        if self.mean == (0, 0, 0) and self.std == (1, 1, 1):
            return f"{self.color_order}, pixels as they are"
        if self.mean == (0, 0, 0):
            return f"{self.color_order}, pixel / {_short(self.std)}"
        return f"{self.color_order}, (pixel − {_short(self.mean)}) / {_short(self.std)}"


RAW = Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # 0 to 255
UNITS = Pixels((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))  # 0 to 1


def normalise(images: np.ndarray) -> np.ndarray:
    """Network input of images: uint8 RGB [N, 112, 112, 3] → float32 [N, 3, 112, 112], (pixel − 127.5) / 127.5."""
    return Pixels().prepare(images)


def triple(values: Any) -> Triple:
    """One number, or three, as three; ValueError for anything else, and for what is not finite."""
    numbers = np.asarray(values, np.float64).reshape(-1)
    if len(numbers) not in (1, 3) or not np.isfinite(numbers).all():
        raise ValueError(f"expected one finite number or three, got {values}")
    first, second, third = (float(number) for number in np.broadcast_to(numbers, 3))
    return first, second, third


def _short(values: Triple) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
