"""Shared by all tests: real data where it is at hand, and one pool of gloo processes for the whole session."""

import importlib.util
import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from recognition import distributed
from recognition.data.shard_writer import ShardWriter
from recognition.distributed import Ranks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real faces (LFW subset, a real network); the test is skipped where it is missing."""
    folder = Path(os.environ.get("FACE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "lfw").is_dir():
        pytest.skip(f"no real data at {folder}; set FACE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RecordIO set of 12 identities with 8 noisy images each, `pairs.bin` beside it (20 pairs of the same people)."""
    folder = tmp_path_factory.mktemp("small set")
    generator = np.random.default_rng(0)
    base = generator.integers(40, 216, (12, 7, 7, 3))

    def picture(label: int) -> bytes:
        coarse = np.clip(base[label] + generator.normal(0, 12, (7, 7, 3)), 0, 255).astype(np.uint8)
        return cv2.imencode(".jpg", cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC))[1].tobytes()

    with ShardWriter(folder / "train.rec") as shard:
        for label in range(12):
            for number in range(8):
                shard.add(label, picture(label), f"{label}/{number}")
    (folder / "property").write_text("12,112,112\n")
    same = [pair % 2 == 0 for pair in range(20)]
    people = [(pair % 12, pair % 12 if match else (pair + 5) % 12) for pair, match in enumerate(same)]
    bins = [picture(label) for pair in people for label in pair]
    (folder / "pairs.bin").write_bytes(pickle.dumps((bins, same), protocol=2))
    return folder


def _load(file: str, name: str) -> Callable[..., Any]:
    """A function of a test module, found by its file: test modules have no importable name in another process."""
    key = f"rank_worker_{Path(file).stem}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return getattr(sys.modules[key], name)


def _serve(connection: Connection, rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="",
    )
    torch.set_num_threads(1)
    ranks = distributed.start(timeout_seconds=60)
    while (task := connection.recv()) is not None:
        try:
            file, name, arguments = task
            connection.send((True, _load(file, name)(ranks, *arguments)))
        except BaseException:
            connection.send((False, traceback.format_exc()))
    distributed.stop(ranks)


class RankPool:
    """`world_size` processes joined by gloo, kept alive between tests: starting them costs seconds."""

    def __init__(self, world_size: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world_size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, world_size, port), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run `function(ranks, *arguments)` in every process and return the results in rank order."""
        file = sys.modules[function.__module__].__file__
        for pipe in self.pipes:
            pipe.send((file, function.__name__, arguments))
        answers = [pipe.recv() for pipe in self.pipes]
        failures = [f"rank {rank}:\n{answer}" for rank, (good, answer) in enumerate(answers) if not good]
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]

    def kill(self) -> None:
        """End the processes without a word."""
        for process in self.processes:
            process.kill()

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(timeout=20)
            process.kill()


@pytest.fixture(scope="session")
def on_ranks() -> Iterator[Callable[..., list[Any]]]:
    """`on_ranks(world_size, function, *arguments)`: run a module-level function of the test's file on gloo ranks.

    World size 1 runs in this process without a process group. Tensors come back pickled: return NumPy or numbers.
    """
    pools: dict[int, RankPool] = {}

    def run(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if world_size == 1:
            return [function(Ranks(), *arguments)]
        if world_size not in pools:
            pools[world_size] = RankPool(world_size)
        try:
            return pools[world_size](function, *arguments)
        except BaseException:
            pools.pop(world_size).kill()  # its group may be out of step: the next test gets a new one
            raise

    yield run
    for pool in pools.values():
        pool.close()
