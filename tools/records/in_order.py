"""Work on many items in parallel and take the results in the items' order, with a bounded number of them waiting.

Proven by tests/tools/records/test_build.py.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

_CHUNK = 32  # items a worker takes at once
_CHUNKS_WAITING = 256  # chunks done or under way: with images of 10 kB some 80 MB

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)) in the items' order, computed by a pool of threads or processes."""
    items = iter(items)
    waiting: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    while chunk := list(islice(items, _CHUNK)):
        waiting.append((chunk, pool.submit(functools.partial(_each, function), chunk)))
        if len(waiting) > _CHUNKS_WAITING:
            done, future = waiting.popleft()
            yield from zip(done, future.result(), strict=True)
    while waiting:
        done, future = waiting.popleft()
        yield from zip(done, future.result(), strict=True)


def _each(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]
