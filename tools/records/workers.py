"""The processes that prepare the pictures of a source, in the pictures' order.

One process does it all where there are few pictures. Otherwise they are started anew (spawn), read from the source by
themselves, and end when their parent is gone, however it went. Proven by tests/tools/records/test_build.py.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import wait
from typing import Any

import cv2

from recognition.cpus import available_cpus
from recognition.errors import DataError
from tools.records.in_order import in_order
from tools.records.prepare import PictureSettings, Prepared, Preparer, Task
from tools.records.sources import Source

_IMAGES_FOR_A_PROCESS = 500  # starting one takes as long as some thousands of small pictures
_FACES_FOR_A_PROCESS = 50  # with a detector

Prepare = Callable[[Iterable[Task]], Iterator[tuple[Task, Prepared]]]
Preparing = AbstractContextManager[Prepare]


def preparing(source: Source, settings: PictureSettings, workers: int | None, total: int) -> Preparing:
    """A context with a function from tasks to (task, prepared image) in their order, for `total` tasks.

    In `workers` processes, or one a core, but no more than pay; a DataError when one of them dies.
    """
    pays = 1 + total // (_FACES_FOR_A_PROCESS if settings.detect else _IMAGES_FOR_A_PROCESS)
    workers = min(workers or available_cpus(), pays)
    return _here(source, settings) if workers == 1 else _elsewhere(source, settings, workers)


@contextmanager
def _here(source: Source, settings: PictureSettings) -> Iterator[Prepare]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the same sums in the same order as in a worker
    try:
        preparer = Preparer(source.reader, settings)
        yield lambda tasks: ((task, preparer(task)) for task in tasks)
    finally:
        cv2.setNumThreads(threads)


@contextmanager
def _elsewhere(source: Source, settings: PictureSettings, workers: int) -> Iterator[Prepare]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    arguments = (source.reader, settings)
    if settings.detect:
        Preparer(*arguments)  # a model that is none is the user's to know, not a dead worker's
    with ProcessPoolExecutor(workers, context, _start, arguments) as pool:
        try:
            _launch(pool, workers)
            yield lambda tasks: in_order(pool, _prepare, tasks)
        except BrokenProcessPool as error:
            raise DataError(f"{source.root}: a worker process died (out of memory, or a picture that kills the "
                            "decoder); the same command goes on, with --workers 1 in one process") from error
        finally:
            pool.shutdown(cancel_futures=True)  # or leaving the block would first do all the work


def _launch(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start the processes deaf to Ctrl-C, which reaches all of them, from their first moment on: the parent decides."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in range(workers):
            pool.submit(os.getpid)  # a task starts a process where none is idle, and it inherits this
    finally:
        signal.signal(signal.SIGINT, before)


_of_this_process: dict[str, Preparer] = {}  # a worker's; a pool hands its initializer's work on in no other way


def _start(*arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _of_this_process["preparer"] = Preparer(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _prepare(task: Task) -> Prepared:
    return _of_this_process["preparer"](task)
