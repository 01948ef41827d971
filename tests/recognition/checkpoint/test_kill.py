"""SIGKILL at every named point of a save, of one process and of each of two: the save before or the new one is good.

The processes that die are forks of this one, which has imported everything. Rank 1 of two passes fewer points.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from recognition import checkpoint, distributed
from recognition.checkpoint import POINTS, Keep, Saver
from recognition.distributed import Ranks
from recognition.heads.centers import shard_range

CLASSES = 7
RANK_1 = ("snapshot", "rows begun", "rows written", "read back", "done")


def _save(ranks: Ranks, folder: Path, step: int, asynchronous: bool = True, last: int = 2) -> None:
    start, stop = shard_range(CLASSES, ranks.rank, ranks.world_size)
    rows = {"weight": torch.full((stop - start, 3), float(step)), "stamp": torch.arange(start, stop)}
    with Saver(folder, ranks, Keep(last), asynchronous, labels=["a"] * CLASSES) as saver:
        saver.save(step, {"x": torch.full((5,), float(step))}, rows, start, {"epoch": step / 10}, after=lambda _: None)


def _die_at(point: str) -> None:
    """Kill this process, a fork, where its save is at a point."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "recognition.checkpoint" and arguments[0] == point:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _step_of_a_good_save(folder: Path) -> int:
    """Of the newest save, once all that it holds was compared with what was saved."""
    saved = checkpoint.latest(folder, Ranks())
    assert saved is not None
    rows = saved.rows(0, CLASSES)
    assert (rows["weight"] == saved.step).all()
    assert rows["stamp"].tolist() == list(range(CLASSES))
    assert (saved.replicated()["x"] == saved.step).all()
    assert saved.state["epoch"] == saved.step / 10
    return saved.step


def _assert_survived(folder: Path, point: str) -> None:
    published = POINTS.index(point) >= POINTS.index("renamed")
    assert _step_of_a_good_save(folder) == (3 if published else 2)
    assert all(checkpoint.problems(path) == [] for path in checkpoint.saves(folder)), "none may look damaged"
    _save(Ranks(), folder, 4)
    assert _step_of_a_good_save(folder) == 4
    assert sorted(path.name for path in folder.iterdir()) == [f"step-00000000{3 if published else 2}", "step-000000004"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_of_a_save(tmp_path, point, asynchronous):
    for step in (1, 2):
        _save(Ranks(), tmp_path, step)
    child = os.fork()
    if not child:
        _die_at(point)
        _save(Ranks(), tmp_path, 3, asynchronous, last=1)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the point was not passed"
    _assert_survived(tmp_path, point)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "point"), [(0, point) for point in POINTS] + [(1, point) for point in RANK_1])
def test_one_of_two_ranks_killed_at_a_point_of_a_save(tmp_path, rank, point):
    for step in (1, 2):
        _save(Ranks(), tmp_path, step)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_fork_rank(number, port, tmp_path, point if number == rank else None) for number in range(2)]
    assert os.waitstatus_to_exitcode(os.waitpid(children[rank], 0)[1]) == -signal.SIGKILL, "the point was not passed"
    assert _status_soon(children[1 - rank]) in (0, 1), "the other one must not hang"
    _assert_survived(tmp_path, point)


def _fork_rank(rank: int, port: int, folder: Path, point: str | None) -> int:
    child = os.fork()
    if child:
        return child
    status = 2
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        ranks = distributed.start(timeout_seconds=3600)
        if point:
            _die_at(point)
        _save(ranks, folder, 3, last=1)
        status = 0
    except RuntimeError:  # "Connection closed by peer"
        status = 1
    finally:
        os._exit(status)


def _status_soon(child: int) -> int:
    """The exit status of a process, which is killed when it takes longer than a minute."""
    for _ in range(600):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL
