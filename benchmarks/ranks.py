"""A function on several gloo ranks of this machine, each a fresh process with an environment of its own.

Proven by tests/benchmarks/test_ranks.py.
"""

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from recognition import distributed
from recognition.errors import SettingsError


def on_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str | None] | None = None
) -> list[Any]:
    """What `function(ranks, *arguments)` returns on each rank; one rank is a process without a group, as in training.

    environment: variables of the processes (None: unset); those that a library reads when it starts are seen, too.
    They see no GPU: with some, `distributed.start` would take NCCL and a GPU a rank.
    """
    shared = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(_free_port()), "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    with contextlib.ExitStack() as pools:
        started = []
        for rank in range(world_size):
            own = {"RANK": None if world_size == 1 else str(rank), "LOCAL_RANK": str(rank)}
            pool = pools.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
            with environment_of(shared | own):  # the process begins with the call
                started.append(pool.submit(_run, function, arguments))
        try:
            return [future.result() for future in started]
        except BrokenProcessPool:
            raise SettingsError(f"a process was killed, probably for lack of memory: {arguments}") from None


@contextlib.contextmanager
def environment_of(variables: Mapping[str, str | None]) -> Iterator[None]:
    """These environment variables in this context, for what is started in it; None: unset."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    ranks = distributed.start(timeout_seconds=600)
    try:
        return function(ranks, *arguments)
    finally:
        distributed.stop(ranks)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
