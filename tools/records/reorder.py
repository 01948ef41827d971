"""Read the images of sets in any order without holding the sets in memory.

Reading a set that is larger than the memory in a random order costs a seek an image. Here it is read once in the order
of its files and thrown into bucket files, each a range of places in the new order; then one bucket after the other is
loaded and dealt out. Twice the bytes are moved, all of them in long runs. What comes out does not depend on the size
of the memory. Beside the buckets some 40 bytes an image are held. Proven by tests/tools/records/test_copies.py.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from recognition.data.dataset import RecordDataset, find_shards, open_dataset
from recognition.errors import SettingsError
from tools.records.names import ImageNames, ImageSet

MAX_BUCKETS = 500  # files open at once; systems allow 1024 by default
_BLOCK = 1 << 16
DEFAULT_MEMORY = 2.0  # GB of images held at once


class Sets:
    """Several sets as one: samples are numbered through, set after set."""

    def __init__(self, datasets: Sequence[ImageSet]) -> None:
        self.datasets = list(datasets)
        self.first = np.cumsum([0, *(dataset.num_images for dataset in datasets)])
        self.num_images = int(self.first[-1])
        self.num_bytes = sum(path.stat().st_size for dataset in datasets for path in dataset.paths)
        self._names = [ImageNames(dataset) for dataset in datasets]

    def _find(self, sample: int) -> tuple[int, int]:
        number = int(np.searchsorted(self.first, sample, "right")) - 1
        return number, sample - int(self.first[number])

    def encoded(self, sample: int) -> np.ndarray:
        """The encoded image, uint8 [bytes]."""
        number, row = self._find(sample)
        return self.datasets[number].encoded(row)

    def name(self, sample: int) -> str:
        """The image's path in its list file, or SET/SAMPLE."""
        number, row = self._find(sample)
        return self._names[number][row]

    def file_order(self) -> Iterator[int]:
        """All samples in the order in which they stand in the files."""
        for first, dataset in zip(self.first.tolist(), self.datasets, strict=False):
            yield from numbers(first + dataset.file_order())


def open_set(root: Path) -> RecordDataset:
    """Open one set; `A,B`, which training takes for two, is none here."""
    find_shards(root)
    return open_dataset(root)


def numbers(values: np.ndarray) -> Iterator[int]:
    """The integers of an array, without a list of all of them."""
    return (number for start in range(0, len(values), _BLOCK) for number in values[start : start + _BLOCK].tolist())


def read_in_order(sources: Sets, order: np.ndarray, folder: Path, memory: float = DEFAULT_MEMORY) -> Iterator[bytes]:
    """The encoded images of the samples `order` int64 [n], each once, in that order.

    Args:
        sources: the sets.
        order: distinct sample numbers.
        folder: where bucket files may stand for a while; they take the bytes of the chosen images.
        memory: gigabytes (10^9) of images held at once.

    Raises:
        SettingsError: so little memory for so many bytes that more than MAX_BUCKETS files would be needed.
    """
    buckets = min(-(-sources.num_bytes // max(1, int(memory * 1e9))), len(order))
    if buckets <= 1 or _rises(sources, order):
        return (bytes(sources.encoded(sample)) for sample in numbers(order))
    if buckets > MAX_BUCKETS:
        least = sources.num_bytes / MAX_BUCKETS / 1e9
        raise SettingsError(f"--memory {memory:g} for {sources.num_bytes / 1e9:.2g} GB; expected at least {least:.2g}")
    return _through_buckets(sources, order, folder, buckets, int(memory * 1e9))


def _rises(sources: Sets, order: np.ndarray) -> bool:
    """Whether each set is read from its beginning to its end, which disks do as fast as buckets."""
    number = np.searchsorted(sources.first, order, "right")
    return all((np.diff(order[number == source]) > 0).all() for source in range(1, len(sources.first)))


def _through_buckets(
    sources: Sets, order: np.ndarray, folder: Path, buckets: int, memory: int
) -> Iterator[bytes]:
    place = np.full(sources.num_images, -1, np.int64)
    place[order] = np.arange(len(order))
    lengths = np.zeros(len(order), np.uint32)
    paths = [folder / f".bucket_{number}" for number in range(buckets)]
    into = [array("q") for _ in paths]  # the places of a bucket's images, as they were written
    files = [open(path, "wb", buffering=max(1 << 16, memory // buckets // 4)) for path in paths]  # noqa: SIM115
    try:
        for sample in tqdm(sources.file_order(), total=sources.num_images, unit=" images", desc="read", disable=None):
            if (at := int(place[sample])) >= 0:
                number = at * buckets // len(order)
                lengths[at] = files[number].write(sources.encoded(sample).data)
                into[number].append(at)
    finally:
        for file in files:
            file.close()
    del place
    for path, places in zip(paths, into, strict=True):
        data = path.read_bytes()
        path.unlink()
        written = np.frombuffer(places, np.int64)
        starts = np.cumsum(np.append(0, lengths[written]), dtype=np.int64)
        for row in numbers(np.argsort(written)):
            yield data[starts[row] : starts[row + 1]]
        del data  # or it would stay until the next bucket is there
