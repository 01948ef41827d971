"""Several processes that embed an IJB folder's faces together, through the cache that they share.

Owns the processes. Each opens the model for itself, on its own GPU or with its share of the processors, and embeds
every n-th of the chunks that the cache lacks; whoever evaluates finds them there. What one meets ends all: unreadable
images are named together, other failures keep their kind, and a process that dies is no silent zero. Proven by
tests/eval/test_ijb_processes.py.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from eval.embed import Embedder
from eval.ijb_cache import PARTS, EmbeddingCache
from eval.ijb_faces import Event, Todo, UnreadableImagesError, embed_chunks, missing_chunks, progress_bar
from eval.ijb_lists import IjbSet
from recognition.errors import DistributedError, TrainerError

POLL_SECONDS = 0.5

OpenModel = Callable[[], Embedder]


def fill_cache(
    models: Sequence[OpenModel], ijb: IjbSet, cache: EmbeddingCache, *, flip: bool, threads: int, progress: bool = False
) -> None:
    """Embed what a cache lacks, in one process for each of `models`.

    Args:
        models: what opens the model in each process; sent there, so a function of a module with its arguments.
        ijb: the set.
        cache: of this model and set.
        flip: mirror images, too.
        threads: that read and align, in each process.
        progress: show a bar, on terminals.

    Raises:
        UnreadableImagesError, NumericsError, CheckpointError …: what a process met. DistributedError: one died.
    """
    todo = missing_chunks(cache, flip)
    models = models[: len(todo)]
    if not models:
        return
    context = multiprocessing.get_context("spawn")
    spoilt, done = context.Event(), context.Value("q", 0)
    nothing = np.empty(0, np.int32)
    faces = replace(ijb, first=nothing, second=nothing, issame=nothing.astype(bool), search=None)  # less to send
    processes: dict[Connection, SpawnProcess] = {}
    try:
        for number, model in enumerate(models):
            here, there = context.Pipe(duplex=False)
            work = model, faces, cache, todo[number :: len(models)], threads, spoilt, done, len(todo), there
            process = context.Process(target=_work, args=work, daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the pipe
            processes[here] = process
        before = len(ijb.images) - sum(len(rows) for rows, _ in todo)
        with progress_bar(ijb, progress, before) as bar:
            problems = _watch(processes, lambda: bar.update(before + done.value - bar.n))
    finally:
        for process in processes.values():
            process.kill()
            process.join()
    if problems:
        raise UnreadableImagesError(sorted(problems))


def _watch(processes: dict[Connection, SpawnProcess], tick: Callable[[], object]) -> list[str]:
    """Wait for all; the lines about unreadable images of all of them. Raises what else a process met."""
    problems: list[str] = []
    waiting = dict(processes)
    while waiting:
        for pipe in wait(list(waiting), POLL_SECONDS):
            assert isinstance(pipe, Connection)
            process = waiting.pop(pipe)
            try:
                outcome = pipe.recv()
            except EOFError:
                process.join()
                code = process.exitcode
                raise DistributedError(f"an embedding process ended with {code}; the same command goes on") from None
            if isinstance(outcome, UnreadableImagesError):
                problems += outcome.problems
            elif outcome is not None:
                raise outcome
        tick()
    return problems


def _work(
    model: OpenModel,
    ijb: IjbSet,
    cache: EmbeddingCache,
    todo: Todo,
    threads: int,
    spoilt: Event,
    done: Any,  # what multiprocessing calls a synchronised number has no public type
    chunks_of_all: int,
    pipe: Connection,
) -> None:
    """Embed some chunks; tell the parent None at the end, or the failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends this process
    parent = multiprocessing.parent_process()

    def count(faces: int) -> None:
        if parent is not None and not parent.is_alive():
            os._exit(1)  # nobody would use the rest, and it may take hours
        with done.get_lock():
            done.value += faces

    try:
        embedder = model()
        cache.require_space(chunks_of_all * len(PARTS), embedder.dim)
        with closing(embed_chunks(embedder.embed, ijb, todo, threads, count, spoilt)) as chunks:
            for rows, parts in chunks:
                for part, embedding in parts.items():
                    cache.write(part, rows, embedding)
        pipe.send(None)
    except TrainerError as error:
        pipe.send(error)
