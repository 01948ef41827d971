"""The usual way to read RecordIO faces: a torch DataLoader whose workers seek, decode, flip and make float32 images.

Written for comparison from what trainers of the field commonly do: the index as a dict, one seek and read an image,
decoding by OpenCV or Pillow, a random flip, (pixel − 127.5) / 127.5 as float32 [3, 112, 112], collated by the loader.
Proven by tests/benchmarks/test_loader_benchmark.py.
"""

import io
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

PREFETCH_FACTOR = 2  # batches a worker that are ready or in work; DataLoader's default
_FRAME, _HEADER = 8, struct.Struct("<IfQQ")


class RecordImages(Dataset[tuple[Tensor, int]]):
    """Images float32 [3, 112, 112] and labels of one .rec file whose records are all images.

    decoder: opencv or pillow.  offsets: of the records that are images, where the file holds others too.
    """

    def __init__(self, record: Path, decoder: str, offsets: Sequence[int] | None = None) -> None:
        if offsets is None:
            offsets = [int(line.split("\t")[1]) for line in record.with_suffix(".idx").read_text().splitlines()]
        self.offsets = dict(enumerate(offsets))
        self.record, self.decode = record, {"opencv": _with_opencv, "pillow": _with_pillow}[decoder]
        self.file: Any = None  # opened by each worker

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if self.file is None:
            self.file = open(self.record, "rb")  # noqa: SIM115 - stays open as long as the worker
        self.file.seek(self.offsets[number])
        _, word = struct.unpack("<II", self.file.read(_FRAME))
        payload = self.file.read(word & (1 << 29) - 1)
        flag, label, _, _ = _HEADER.unpack_from(payload)
        if flag:  # several labels, the class first
            (label,) = struct.unpack_from("<f", payload, _HEADER.size)
        image = self.decode(payload[_HEADER.size + 4 * flag :])
        if random.random() < 0.5:
            image = image[:, ::-1]
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
        return torch.from_numpy((pixels - 127.5) / 127.5), int(label)


def _with_opencv(encoded: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _with_pillow(encoded: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def batches(
    record: Path, batch: int, workers: int, decoder: str, offsets: Sequence[int] | None = None, pinned: bool = False
) -> tuple[Iterator[Any], list[int]]:
    """Endless batches (float32 [batch, 3, 112, 112], int64 [batch]) and the processes that make them."""
    dataset = RecordImages(record, decoder, offsets)
    loader = DataLoader(
        dataset, batch, sampler=RandomSampler(dataset, replacement=True, num_samples=1 << 40), num_workers=workers,
        multiprocessing_context="spawn" if workers else None, drop_last=True, pin_memory=pinned,
        prefetch_factor=PREFETCH_FACTOR if workers else None,
    )
    iterator = iter(loader)
    return iterator, [worker.pid for worker in getattr(iterator, "_workers", [])]
