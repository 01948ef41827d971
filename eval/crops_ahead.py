"""Faces read and aligned by threads ahead of the network that asks for them.

Owns the window: so many blocks of crops are held at once and no more, however many pictures there are.
Proven by tests/eval/test_ijb_faces.py.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from recognition.data.align import SIZE
from recognition.errors import DataError

FACES_AT_ONCE = 128  # crops that the network gets together
BLOCKS_AHEAD = 3  # of so many crops, read before the network asks for them: 5 MB each

Crop = Callable[[int], np.ndarray]  # number → RGB uint8 [112, 112, 3]; DataError where the picture cannot be used
Crops = tuple[range, np.ndarray, dict[int, DataError]]  # see `crops_ahead`


def crops_ahead(crop: Crop, blocks: Iterable[range], threads: int) -> Generator[Crops, None, None]:
    """Crops of blocks of faces, read by `threads` threads ahead of whoever asks.

    Yields:
        the block; its crops, uint8 [n, 112, 112, 3], black where one cannot be had; why each of those cannot, by its
        number. Other errors than DataError end it.
    """
    waiting: deque[tuple[range, list[Future[np.ndarray]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for block in blocks:
                waiting.append((block, [pool.submit(crop, number) for number in block]))
                if len(waiting) > BLOCKS_AHEAD:
                    yield _gather(*waiting.popleft())
            while waiting:
                yield _gather(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)  # after an error nobody wants the rest


def _gather(block: range, futures: Sequence[Future[np.ndarray]]) -> Crops:
    crops, problems = np.zeros((len(block), SIZE, SIZE, 3), np.uint8), dict[int, DataError]()
    for place, future in enumerate(futures):
        try:
            crops[place] = future.result()
        except DataError as error:
            problems[block[place]] = error
    return block, crops, problems
