"""The plan through DALI: raw bytes from the memory map, decoded, augmented with the plan's parameters, uint8 NHWC.

The order stays ours: DALI asks a callback for each batch, which hands it views of the encoded images and one array for
each augmentation parameter. On a GPU the decoder is "mixed" and images stay on the device (that path is written from
DALI's documentation and its tests are marked `gpu`); elsewhere the pipeline runs without a device.
Proven by tests/recognition/data/test_loaders.py.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia import dali as typed_dali

from recognition.data import dali_augment
from recognition.data.augmentation import IMAGE_SIDE
from recognition.data.batch import Batch, Samples, wrong_size
from recognition.data.image_file import ImageError, decode_rgb
from recognition.data.plan import Plan, PlannedBatch
from recognition.errors import DataError

dali: Any = typed_dali  # DALI's type stubs lack much of what its modules have
fn, types, pipeline_def = dali.fn, dali.types, dali.pipeline_def
TensorCPU, TensorListCPU = dali.tensors.TensorCPU, dali.tensors.TensorListCPU

_PREFETCH = 2  # batches that DALI works on ahead


class _Fed(NamedTuple):
    """A batch that DALI works on. Holds the arrays that DALI reads, which it does not copy."""

    planned: PlannedBatch
    encoded: list[np.ndarray]
    inputs: tuple[Any, ...]


class DaliLoader:
    """Batches of a plan, decoded and augmented by DALI in `threads` CPU threads and on the device if it is a GPU."""

    name = "dali"

    def __init__(self, dataset: Samples, plan: Plan, device: torch.device, threads: int) -> None:
        self.dataset, self.plan, self.device, self.threads = dataset, plan, device, max(threads, 1)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of the global steps [start_step, stop_step); a sample that cannot be used is a DataError."""
        steps = iter(range(start_step, stop_step))
        fed: deque[_Fed] = deque()

        def feed() -> tuple[Any, ...]:
            fed.append(self._prepare(next(steps)))  # StopIteration ends DALI's epoch
            return fed[-1].inputs

        pipeline = _pipeline(self.plan, self.threads, self.device, feed)
        try:
            while True:
                try:
                    image, size = pipeline.run()
                except StopIteration:
                    return
                except RuntimeError as error:
                    if culprit := self._culprit(fed):
                        raise culprit from error
                    raise
                yield self._batch(fed.popleft().planned, image, size)
        finally:
            del pipeline  # waits for work in flight, which reads arrays that `fed` holds

    def _prepare(self, step: int) -> _Fed:
        planned = self.plan.batch(step)
        encoded = [self.dataset.encoded(sample) for sample in planned.sample.tolist()]
        raw = TensorListCPU([TensorCPU(image, "") for image in encoded], "", contiguous=False)
        inputs = [raw, *dali_augment.inputs(self.plan.augmentation, planned.draws)]
        return _Fed(planned, encoded, tuple(inputs))

    def _batch(self, planned: PlannedBatch, image: Any, size: Any) -> Batch:
        height, width = np.moveaxis(size.as_array()[:, :2], 1, 0)
        wrong = np.flatnonzero((height != IMAGE_SIDE) | (width != IMAGE_SIDE))
        if len(wrong):
            row = int(wrong[0])
            raise wrong_size(self.dataset.where(int(planned.sample[row])), int(height[row]), int(width[row]))
        label = torch.from_numpy(self.dataset.labels_of(planned.sample)).to(self.device)
        return Batch(_to_torch(image, self.device), label, planned.sample)

    def _culprit(self, fed: deque[_Fed]) -> DataError | None:
        """The first sample that DALI cannot decode among the batches in work; its error does not say which."""
        pipeline = _single_image_pipeline()
        for batch in fed:
            for sample, encoded in zip(batch.planned.sample.tolist(), batch.encoded, strict=True):
                try:
                    pipeline.feed_input("encoded", [encoded])
                    pipeline.run()
                except (RuntimeError, ValueError):
                    return DataError(f"{self.dataset.where(sample)}: {_reason(encoded)}")
        return None


def _reason(encoded: np.ndarray) -> str:
    try:
        decode_rgb(encoded)
    except ImageError as error:
        return str(error)
    return f"an image of {len(encoded)} bytes, beginning with {bytes(encoded[:8]).hex()}, that DALI cannot decode"


def _pipeline(plan: Plan, threads: int, device: torch.device, feed: Any) -> Any:
    """The pipeline: `feed()` gives a batch's inputs; out come images and the sizes that their headers state.

    Only images of the right size are decoded, so that none can cost gigabytes; others come out as zeros.
    """
    on_gpu = device.type == "cuda"
    num_inputs = 1 + dali_augment.num_inputs(plan.augmentation)

    @pipeline_def(enable_conditionals=True)
    def define() -> tuple[Any, Any]:
        encoded, *arrays = fn.external_source(source=feed, num_outputs=num_inputs, batch=True, no_copy=True)
        image, size = _decode(encoded, on_gpu)
        image = dali_augment.augmented(image, plan.augmentation, arrays)
        return image, size

    pipeline = define(
        batch_size=plan.rows,
        num_threads=threads,
        device_id=_device_number(device) if on_gpu else None,
        prefetch_queue_depth=_PREFETCH,
        exec_dynamic=True,  # outputs own their memory, which _to_torch relies on
    )
    pipeline.build()
    return pipeline


# Rewritten by DALI: `if` on a tensor is a branch for each sample.


def _decode(encoded: Any, on_gpu: bool) -> tuple[Any, Any]:
    size = fn.peek_image_shape(encoded)
    if (size[0] == IMAGE_SIDE) & (size[1] == IMAGE_SIDE):
        device = "mixed" if on_gpu else "cpu"
        image = fn.decoders.image(encoded, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True)
    else:
        image = types.Constant(np.zeros((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8), layout="HWC")
        if on_gpu:
            image = image.gpu()
    return image, size


def _device_number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _single_image_pipeline() -> Any:
    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def define() -> Any:
        return fn.decoders.image(fn.external_source(name="encoded"), device="cpu", output_type=types.RGB)

    pipeline = define()
    pipeline.build()
    return pipeline


def _to_torch(images: Any, device: torch.device) -> torch.Tensor:
    """DALI's output as a tensor uint8 [b, 112, 112, 3] on the device.

    On the CPU it takes over DALI's memory; at most one copy gathers images that passed different branches. On a GPU
    it is copied on the current stream: DALI would use its own memory again without waiting for that stream.
    """
    dense = images.as_tensor()
    if device.type != "cuda":
        return torch.from_dlpack(dense)
    from nvidia.dali.plugin.pytorch import feed_ndarray

    copied = torch.empty(tuple(dense.shape()), dtype=torch.uint8, device=device)
    feed_ndarray(dense, copied, cuda_stream=torch.cuda.current_stream(device))
    return copied
