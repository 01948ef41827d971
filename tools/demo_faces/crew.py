"""Drawing many pictures with several processes, in order, holding only a few batches at a time.

Proven by tests/tools/test_make_demo_data.py (same bytes with one process and with two).
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice

import cv2

from tools.demo_faces.picture import Picture, Request, make_pictures
from tools.demo_faces.scene import Variation

_BATCH = 64  # pictures a task: long enough to hide what passing them costs
_AHEAD = 3  # tasks a worker that may be waiting or done before the writer takes them


def draw(seed: int, variation: Variation, requests: Iterable[Request], workers: int) -> Iterator[Picture]:
    """Yield the pictures in the order of the requests, however many processes draw them."""
    batches = _batches(iter(requests))
    if workers <= 1:
        for batch in batches:
            yield from make_pictures(seed, variation, batch)
        return
    # "spawn": the caller may hold threads (a trainer, a loader), which a forked child would not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        waiting: deque[Future[list[Picture]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(make_pictures, seed, variation, batch))
            if len(waiting) > workers * _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _batches(requests: Iterator[Request]) -> Iterator[list[Request]]:
    while batch := list(islice(requests, _BATCH)):
        yield batch


def _begin() -> None:
    cv2.setNumThreads(1)  # the processes are the parallelism
