"""Sets on disks that cannot seek: DALI's own RecordIO reader hands out records in the files' order, through a buffer.

Each rank reads its own contiguous piece of the files, another one in each epoch, and picks at random from a buffer of
16,384 records: over a set that is sorted by identity this is no shuffle, so shuffle such a set first. An epoch is as
many steps as with the other readers, every sample is met at most once in it, and its order is a function of (seed,
epoch, rank, number of ranks). A run that goes on in the middle of an epoch reads that epoch's records up to there
again, without decoding them. The reader says neither key nor offset: samples are −1, and a bad one is looked up by its
bytes.
Header and identity records never come out, since they are not in the index that is written for the reader.
Decoding and augmentation are those of recognition/data/dali.py. Proven by tests/recognition/data/test_stream.py.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recognition.data import dali_augment
from recognition.data.augmentation import draw_augmentation
from recognition.data.bad_samples import BAD_SHARE, fault
from recognition.data.batch import Batch, to_device
from recognition.data.dali import DaliLoader, _Fed, fn, pipeline_def
from recognition.data.dataset import RecordDataset
from recognition.data.plan import Plan, PlannedBatch
from recognition.data.recordio import write_index
from recognition.errors import DataError, SettingsError
from recognition.streams import torch_seed

_BUFFER = 1 << 14  # records among which one is picked at random: about 100 MB
_STREAM = 0x73747265616D  # keeps this use of the seed apart from others


class StreamLoader(DaliLoader):
    """Batches in the order of DALI's reader; of the plan it takes the sizes and the seed."""

    name = "stream"

    def __init__(
        self,
        dataset: RecordDataset,
        plan: Plan,
        device: torch.device,
        threads: int,
        bad_share: float = BAD_SHARE,
        decode: str = "auto",
    ) -> None:
        super().__init__(dataset, plan, device, threads, bad_share, decode)
        if not dataset.is_one_set:
            raise SettingsError("data.reader=stream reads one set, of weight 1; tools/rec_builder.py merges several")
        self.records = dataset
        self.label_base = dataset.stated.label_base

    def _batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        with tempfile.TemporaryDirectory(prefix="stream-index-") as folder:
            index = Path(folder, "images.idx")
            write_index(index, np.arange(self.records.num_images), self.records.offsets_in_all_files())
            self._source = self._read(index, start_step, stop_step)
            self._waiting: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}  # a pipeline built anew takes them again
            self._killers: dict[bytes, str] = {}  # digests of images that look whole and are not, and the reasons
            for step, batch in enumerate(super()._batches(start_step, stop_step), start_step):
                del self._waiting[step]
                yield batch

    def _read(self, index: Path, step: int, stop_step: int) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Encoded images and labels int64 [b] of the steps [step, stop_step)."""
        while step < stop_step:
            epoch, skipped = divmod(step, self.plan.steps_per_epoch)
            pipeline = self._reader(index, epoch)
            for _ in range(skipped):
                pipeline.run()
            for _ in range(min(self.plan.steps_per_epoch - skipped, stop_step - step)):
                records, labels = pipeline.run()
                yield [np.array(record) for record in records], self._labels(labels)
                step += 1

    def _reader(self, index: Path, epoch: int) -> Any:
        """A pipeline over one epoch's records of this rank, not decoded."""
        plan, paths = self.plan, [str(path) for path in self.records.paths]
        seed = torch_seed(_STREAM, plan.seed, epoch, plan.rank) & 0x7FFFFFFF

        @pipeline_def(batch_size=plan.rows, num_threads=1, device_id=None)
        def define() -> Any:
            record, label = fn.readers.mxnet(
                path=paths, index_path=[str(index)], random_shuffle=True, initial_fill=_BUFFER, seed=seed,
                shard_id=(plan.rank + epoch) % plan.world_size, num_shards=plan.world_size, pad_last_batch=True,
                dont_use_mmap=True,
            )
            return record, label

        pipeline = define()
        pipeline.build()
        return pipeline

    def _labels(self, labels: Any) -> np.ndarray:
        """Labels int64 [b] from what stands in the records, checked as always: the files may have changed."""
        if labels.is_dense_tensor():
            values = np.array(labels.as_array(), np.float64).reshape(len(labels), -1)
            single = np.full(len(values), values.shape[1] < 2)
            values = values[:, [0, 0 if values.shape[1] < 2 else 1]]
        else:
            values = np.array([np.resize(np.array(label, np.float64), 2) for label in labels])
            single = np.array([len(np.array(label)) < 2 for label in labels])
        label, limit = values[:, 0], self.records.num_classes
        if self.label_base:
            label = np.where(single, label, label * self.label_base + values[:, 1])
        right = (label >= 0) & (label < limit) & (label == np.floor(label))
        if not right.all():
            raise DataError(f"{self.records.root}: label {label[~right][0]}; expected whole numbers below {limit}")
        return label.astype(np.int64)

    def _prepare(self, step: int) -> _Fed:
        if step not in self._waiting:
            self._waiting[step] = next(self._source)
        encoded, label = self._waiting[step]
        reasons = [(self._killers and self._killers.get(_digest(image))) or fault(image) for image in encoded]
        good = np.flatnonzero([reason is None for reason in reasons])
        for row, reason in enumerate(reasons):
            if reason is not None:
                self.bad.add(self._find(encoded[row], int(label[row])), reason)
        if not len(good):
            raise DataError(f"{self.records.root}: not one image of step {step} can be used")
        chosen = good[np.searchsorted(good, np.arange(len(encoded))) % len(good)]  # itself, or the next good one
        plan = self.plan
        epoch, of_epoch = divmod(step, plan.steps_per_epoch)
        position = of_epoch * plan.batch_size + plan.rank * plan.rows + np.arange(plan.rows)
        draws = draw_augmentation(plan.augmentation, plan.seed, epoch, position)
        planned = PlannedBatch(step, epoch, np.full(plan.rows, -1), draws)
        images = [encoded[row] for row in chosen]
        self._waiting[step] = images, label[chosen]
        return _Fed(planned, images, self._inputs(images, dali_augment.inputs(plan.augmentation, draws)))

    def _batch(self, planned: PlannedBatch, image: Any) -> Batch:
        label = to_device(self._waiting[planned.step][1], self.device)
        return Batch(self._image(image), label, planned.sample)

    def _find(self, image: np.ndarray, label: int) -> int:
        """The number of a sample, by its label and its bytes."""
        for sample in np.flatnonzero(self.records.labels == label).tolist():
            if np.array_equal(self.records.encoded(sample), image):
                return sample
        raise DataError(f"{self.records.root}: a record that the index does not have; was the set changed?")

    def _sample_of(self, fed: _Fed, row: int) -> int:
        image = fed.encoded[row]
        self._killers[_digest(image)] = "DALI cannot decode it"
        return self._find(image, int(self._waiting[fed.planned.step][1][row]))


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.data, digest_size=16).digest()
