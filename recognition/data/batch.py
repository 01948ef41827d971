"""What every loader hands out, and how uint8 images become the network's input.

Images outside the network are uint8 RGB [b, 112, 112, 3]; the network sees float32 [b, 3, 112, 112] in [−1, 1].
Proven by tests/recognition/data/test_loaders.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from recognition.data.plan import Plan

if TYPE_CHECKING:  # which asks for Samples
    from recognition.data.bad_samples import BadSamples


@dataclass(frozen=True)
class Batch:
    """One rank's rows of a step: images and labels on the device, sample numbers on the host."""

    image: torch.Tensor  # uint8 [b, 112, 112, 3], RGB
    label: torch.Tensor  # int64 [b]
    sample: np.ndarray  # int64 [b]


class Samples(Protocol):
    """What a loader asks of a set; recognition.data.dataset.RecordDataset is one."""

    def labels_of(self, sample: np.ndarray) -> np.ndarray:
        """The labels of samples int64 [b], int64 [b]."""

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image of a sample, uint8 [bytes]."""

    def where(self, sample: int) -> str:
        """Where a sample stands, for errors: `FILE: record K @ offset N`."""


class Loader(Protocol):
    """The interface of all loaders."""

    name: str
    plan: Plan
    bad: "BadSamples"  # the samples that this rank could not use so far

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of the global steps [start_step, stop_step) in order."""


def host_array(shape: tuple[int, ...], device: torch.device) -> np.ndarray:
    """An array uint8 to fill on the host and send to the device: pinned for a GPU, so that nothing copies it first."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda").numpy()


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device; on a GPU from pinned memory, so that the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def normalise(image: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(pixel − 127.5) / 127.5: uint8 [b, 112, 112, 3] to `dtype` [b, 3, 112, 112] in channels-last memory.

    In bfloat16 and float16 it is, to the bit, the float32 result rounded: 2·pixel − 255 has at most 8 digits, so that
    only the division rounds. A network that would cast its input there saves a pass over the float32 batch.
    """
    return image.permute(0, 3, 1, 2).to(dtype).sub_(127.5).div_(127.5)
