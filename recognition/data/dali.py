"""The plan through DALI: raw bytes from the memory map, decoded, augmented with the plan's parameters, uint8 NHWC.

The order stays ours: DALI asks a callback for each batch, which hands it views of the encoded images and one array for
each augmentation parameter. An exception kills a pipeline of DALI's, so that what cannot be decoded is looked for
first (recognition/data/bad_samples.py); what still kills one is found, replaced, and a new pipeline goes on.
On a GPU the decoder is "cpu", "mixed", or a share of each ("shared"), and images stay on the device, where DALI works
ahead on a stream of its own (that path is written from DALI's documentation and its tests are marked `gpu`); elsewhere
the pipeline runs without a device.
Proven by tests/recognition/data/test_loaders.py and tests/recognition/data/test_bad_samples.py.
"""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia import dali as typed_dali

from recognition.data import dali_augment
from recognition.data.augmentation import IMAGE_SIDE
from recognition.data.bad_samples import BAD_SHARE, BadSamples, fault_of_decoding, logger
from recognition.data.batch import Batch, Samples, to_device
from recognition.data.plan import Plan, PlannedBatch
from recognition.errors import SettingsError

dali: Any = typed_dali  # DALI's type stubs lack much of what its modules have
fn, types, pipeline_def = dali.fn, dali.types, dali.pipeline_def
TensorCPU, TensorListCPU = dali.tensors.TensorCPU, dali.tensors.TensorListCPU

DECODERS = ("cpu", "mixed", "shared")
_PREFETCH = 2  # batches that DALI works on ahead
_MEASURED = 100  # batches to tell which decoder is the fastest, after as many tenths that warm up


class _Fed(NamedTuple):
    """A batch that DALI works on. Holds the arrays that DALI reads, which it does not copy."""

    planned: PlannedBatch
    encoded: list[np.ndarray]
    inputs: tuple[Any, ...]


class DaliLoader:
    """Batches of a plan, decoded and augmented by DALI in `threads` CPU threads and on the device if it is a GPU.

    decode: where a GPU decodes; "auto" measures all ways for some batches before the first, and keeps the fastest.
    """

    name = "dali"

    def __init__(
        self,
        dataset: Samples,
        plan: Plan,
        device: torch.device,
        threads: int,
        bad_share: float = BAD_SHARE,
        decode: str = "auto",
    ) -> None:
        self.dataset, self.plan, self.device, self.threads = dataset, plan, device, max(threads, 1)
        self.bad = BadSamples(dataset, plan.num_images, bad_share)
        if device.type != "cuda":
            if decode not in ("auto", "cpu"):
                raise SettingsError(f"data.decode={decode} needs a GPU; without one it is 'cpu' (or 'auto')")
            decode = "cpu"
        self.decode = decode

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of the global steps [start_step, stop_step); too many bad samples are a DataError."""
        if self.decode == "auto" and start_step < stop_step:
            self.decode = self._fastest(start_step)
        return self._batches(start_step, stop_step)

    def _batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        while start_step < stop_step:
            for batch in self._until_one_fails(start_step, stop_step):
                start_step += 1
                yield batch

    def _until_one_fails(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Batches from one pipeline, until the last or until an image kills it, which then is among the bad ones."""
        steps = iter(range(start_step, stop_step))
        fed: deque[_Fed] = deque()

        def feed() -> tuple[Any, ...]:
            fed.append(self._prepare(next(steps)))  # StopIteration ends DALI's epoch
            return fed[-1].inputs

        pipeline = self._pipeline(feed)
        try:
            while True:
                try:
                    (image,) = pipeline.run()
                    batch = self._batch(fed[0].planned, image)
                except StopIteration:
                    return
                except RuntimeError:
                    if not self._find_culprits(fed):
                        raise
                    return
                del image
                fed.popleft()
                yield batch
        finally:
            del pipeline  # waits for work in flight, which reads arrays that `fed` holds

    def _prepare(self, step: int) -> _Fed:
        planned = self.plan.batch(step)
        encoded = self.bad.encoded(self.plan, planned)
        return _Fed(planned, encoded, self._inputs(encoded, dali_augment.inputs(self.plan.augmentation, planned.draws)))

    def _inputs(self, encoded: list[np.ndarray], drawn: list[np.ndarray]) -> tuple[Any, ...]:
        """What the pipeline takes; no byte of an image is copied."""
        raw = TensorListCPU([TensorCPU(image, "") for image in encoded], "", contiguous=False)
        by_gpu = [np.arange(len(encoded)) % 2 == 0] if self.decode == "shared" else []
        return raw, *by_gpu, *drawn

    def _batch(self, planned: PlannedBatch, image: Any) -> Batch:
        label = to_device(self.dataset.labels_of(planned.sample), self.device)
        return Batch(self._image(image), label, planned.sample)

    def _image(self, images: Any) -> torch.Tensor:
        """DALI's output as a tensor uint8 [b, 112, 112, 3] on the device.

        On the CPU it takes over DALI's memory; at most one copy gathers images that passed different branches. On a
        GPU it is copied on the current stream: DALI would use its own memory again without waiting for that stream.
        """
        dense = images.as_tensor()
        if self.device.type != "cuda":
            return torch.from_dlpack(dense)
        from nvidia.dali.plugin.pytorch import feed_ndarray

        copied = torch.empty(tuple(dense.shape()), dtype=torch.uint8, device=self.device)
        feed_ndarray(dense, copied, cuda_stream=torch.cuda.current_stream(self.device))
        return copied

    def _find_culprits(self, fed: deque[_Fed]) -> bool:
        """Add to the bad samples what DALI cannot decode of the batches in work; its error does not say which."""
        pipeline, before = _single_image_pipeline(), self.bad.count
        for batch in fed:
            for row, encoded in enumerate(batch.encoded):
                try:
                    pipeline.feed_input("encoded", [encoded])
                    (image,) = pipeline.run()
                    if tuple(image.at(0).shape) != (IMAGE_SIDE, IMAGE_SIDE, 3):
                        raise ValueError(f"decodes to the shape {image.at(0).shape}")
                except (RuntimeError, ValueError):
                    begins = bytes(encoded[:8]).hex()
                    unknown = f"an image of {len(encoded)} bytes, beginning with {begins}, that DALI cannot decode"
                    self.bad.add(self._sample_of(batch, row), fault_of_decoding(encoded) or unknown)
                    pipeline = _single_image_pipeline()  # an error ends one
        return self.bad.count > before

    def _sample_of(self, fed: _Fed, row: int) -> int:
        return int(fed.planned.sample[row])

    def _fastest(self, step: int) -> str:
        """The decoder that gives most images a second, measured on the batches from a step on."""
        rates = {}
        for self.decode in DECODERS:
            batches = self._batches(step, step + _MEASURED + _MEASURED // 10)
            for _ in range(_MEASURED // 10):
                next(batches)
            torch.cuda.synchronize(self.device)
            begin = time.perf_counter()
            for _ in batches:
                pass
            torch.cuda.synchronize(self.device)
            rates[self.decode] = _MEASURED * self.plan.rows / (time.perf_counter() - begin)
        best = max(rates, key=lambda name: rates[name])
        measured = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        logger.info("data.decode: %s is the fastest here (images a second of this rank: %s)", best, measured)
        return best

    def _pipeline(self, feed: Any) -> Any:
        """The pipeline: `feed()` gives a batch's inputs; out come images, all of one size."""
        plan, decode, on_gpu = self.plan, self.decode, self.device.type == "cuda"
        num_inputs = 1 + (decode == "shared") + dali_augment.num_inputs(plan.augmentation)

        @pipeline_def(enable_conditionals=True)
        def define() -> Any:
            encoded, *arrays = fn.external_source(source=feed, num_outputs=num_inputs, batch=True, no_copy=True)
            if decode == "shared":
                image = _shared(encoded, arrays[0])
                return dali_augment.augmented(image, plan.augmentation, arrays[1:])
            image = _decoded(encoded, "mixed" if decode == "mixed" else "cpu")
            return dali_augment.augmented(image.gpu() if on_gpu else image, plan.augmentation, arrays)

        pipeline = define(
            batch_size=plan.rows,
            num_threads=self.threads,
            device_id=_device_number(self.device) if on_gpu else None,
            prefetch_queue_depth=_PREFETCH,
            exec_dynamic=True,  # outputs own their memory, which _image relies on
        )
        pipeline.build()
        return pipeline


def _decoded(encoded: Any, device: str) -> Any:
    return fn.decoders.image(encoded, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True)


def _shared(encoded: Any, by_gpu: Any) -> Any:  # rewritten by DALI: `if` on a tensor is a branch for each sample
    if by_gpu:
        image = _decoded(encoded, "mixed")
    else:
        image = _decoded(encoded, "cpu").gpu()
    return image


def _device_number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _single_image_pipeline() -> Any:
    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def define() -> Any:
        return _decoded(fn.external_source(name="encoded"), "cpu")

    pipeline = define()
    pipeline.build()
    return pipeline
