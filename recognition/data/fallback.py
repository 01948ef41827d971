"""The plan without DALI, for platforms it does not serve and for tests: OpenCV decodes, NumPy augments, in threads.

Equal to DALI's pixels on the CPU within one grey level. Proven by tests/recognition/data/test_loaders.py.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from recognition.data.augment import augment
from recognition.data.augmentation import IMAGE_SIDE
from recognition.data.bad_samples import BAD_SHARE, BadSamples, decode_face
from recognition.data.batch import Batch, Samples, host_array, to_device
from recognition.data.plan import Plan, PlannedBatch
from recognition.errors import DataError

_PREFETCH = 2  # batches in work while one is used, as many as DALI's default


class FallbackLoader:
    """Batches of a plan, decoded on the CPU in `threads` threads."""

    name = "fallback"

    def __init__(
        self, dataset: Samples, plan: Plan, device: torch.device, threads: int, bad_share: float = BAD_SHARE
    ) -> None:
        self.dataset, self.plan, self.device, self.threads = dataset, plan, device, max(threads, 1)
        self.bad = BadSamples(dataset, plan.num_images, bad_share)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of the global steps [start_step, stop_step); too many bad samples are a DataError."""
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="fallback-loader")
        begun: deque[tuple[PlannedBatch, np.ndarray, list[Future[None]]]] = deque()
        try:
            for step in range(start_step, stop_step):
                begun.append(self._begin(pool, step))
                if len(begun) > _PREFETCH:
                    yield self._finish(*begun.popleft())
            while begun:
                yield self._finish(*begun.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, step: int) -> tuple[PlannedBatch, np.ndarray, list[Future[None]]]:
        planned = self.plan.batch(step)
        image = host_array((len(planned.sample), IMAGE_SIDE, IMAGE_SIDE, 3), self.device)
        bounds = np.linspace(0, len(image), min(self.threads, len(image)) + 1).astype(int).tolist()
        return planned, image, [pool.submit(self._fill, planned, image, *span) for span in pairwise(bounds)]

    def _fill(self, planned: PlannedBatch, image: np.ndarray, start: int, stop: int) -> None:
        for row in range(start, stop):
            decoded = self.bad.usable(self.plan, planned, row, lambda sample: decode_face(self.dataset.encoded(sample)))
            image[row] = augment(decoded, planned.draws, row)

    def _finish(self, planned: PlannedBatch, image: np.ndarray, parts: list[Future[None]]) -> Batch:
        for part in parts:
            part.result()
        label = self.dataset.labels_of(planned.sample)
        return Batch(to_device(image, self.device), to_device(label, self.device), planned.sample)


def decode(dataset: Samples, sample: int) -> np.ndarray:
    """The image of a sample, uint8 RGB [112, 112, 3]; a DataError says what else it is.

    The size in the header decides first: an image that would take gigabytes is refused, not decoded.
    """
    image = decode_face(dataset.encoded(sample))
    if isinstance(image, str):
        raise DataError(f"{dataset.where(sample)}: {image}")
    return image
