"""Saving beside training: what is saved is the moment of the call, training goes on, failures come out on all ranks."""

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recognition import checkpoint, distributed
from recognition.checkpoint import Keep, Published, Saver, saver
from recognition.checkpoint.snapshot import HostCopies, content
from recognition.distributed import Ranks
from recognition.errors import CheckpointError, DistributedError
from recognition.heads.centers import shard_range

CLASSES = 10


def _rows(ranks: Ranks, value: float, width: int = 3) -> tuple[dict[str, torch.Tensor], int]:
    start, stop = shard_range(CLASSES, ranks.rank, ranks.world_size)
    return {"weight": torch.full((stop - start, width), value), "stamp": torch.arange(start, stop)}, start


def _in_a_fork(action: Callable[[], None]) -> int:
    """Do something in a copy of this process; its exit status, −N for signal N. 0: it came to its end."""
    child = os.fork()
    if not child:
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _busy_meanwhile(ranks: Ranks, folder: str) -> tuple[bool, list[float], list[float]]:
    """Training's collectives while a save is under way: rank 0's `after` holds it until they are through."""
    through = threading.Event()
    rows, start = _rows(ranks, 1.0)
    replicated = {"x": torch.tensor([5.0]), "image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    sums, seen = [], []

    def after(published: Published) -> None:
        seen.append(float(published.replicated["x"]))
        assert through.wait(60)

    with Saver(Path(folder), ranks, Keep()) as saver:
        saver.save(1, replicated, rows, start, {}, after=after)
        for step in range(200):
            rows["weight"].fill_(float("nan"))
            replicated["x"].fill_(float("nan"))
            sums.append(distributed.sum_over_ranks(torch.tensor(float(step + ranks.rank)), ranks).item())
            gathered = distributed.gather_rows(torch.tensor([[ranks.rank]]), ranks)
            assert gathered.flatten().tolist() == list(range(ranks.world_size))
        busy = saver.is_busy
        through.set()
    return busy, sums, seen


@pytest.mark.parametrize("world", [1, 2, 4])
def test_training_exchanges_while_a_save_is_under_way(on_ranks, tmp_path, world):
    results = on_ranks(world, _busy_meanwhile, str(tmp_path))
    for busy, sums, _ in results:
        assert busy, "the save must have been under way all the time"
        assert sums == [world * step + sum(range(world)) for step in range(200)]
    assert results[0][2] == [5.0]
    saved = checkpoint.read(tmp_path / "step-000000001")
    assert (saved.rows(0, CLASSES)["weight"] == 1).all()
    assert saved.replicated()["x"].tolist() == [5.0]


def test_a_copy_is_of_the_moment_and_uses_its_memory_again():
    weight, copies = torch.arange(12.0).view(4, 3), HostCopies()
    first = copies.of(content(1, {}, {"b": torch.tensor(True)}, {"weight": weight}, 4))
    (start, stop, tensors), = first.row_files
    (part,) = tensors["weight"].parts
    weight.zero_()
    assert (start, stop) == (4, 8)
    np.testing.assert_array_equal(part, np.arange(12.0).reshape(4, 3))
    second = copies.of(content(2, {}, {"b": torch.tensor(True)}, {"weight": weight}, 4))
    (again,) = second.row_files[0][2]["weight"].parts
    assert again.data_ptr() == part.data_ptr()
    assert second.replicated["b"].data_ptr() == first.replicated["b"].data_ptr()


def test_rows_are_copied_in_parts(monkeypatch):
    from recognition.checkpoint import snapshot

    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 40)
    weight = torch.randn(10, 3)
    (_, _, tensors), = HostCopies().of(content(1, {}, {}, {"weight": weight}, 0)).row_files
    parts = list(tensors["weight"].parts)
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    assert torch.equal(torch.cat(parts), weight)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_model_of_the_save_reaches_after(tmp_path, asynchronous):
    x, published = torch.tensor([1.0]), []
    with Saver(tmp_path, Ranks(), Keep(), asynchronous) as saver:
        for step in (1, 2):
            x.fill_(step)
            rows, start = _rows(Ranks(), 0.0)
            saver.save(step, {"x": x}, rows, start, {"epoch": step / 2}, score=0.5, after=lambda save: published.append(
                (save.folder.is_dir(), save.step, float(save.replicated["x"]), save.state["epoch"])))
    assert published == [(True, 1, 1.0, 0.5), (True, 2, 2.0, 1.0)]
    assert checkpoint.read(tmp_path / "step-000000002").state == {"step": 2, "score": 0.5, "epoch": 1.0}


def test_state_that_is_not_plain_and_finite_fails_at_once(tmp_path):
    rows, start = _rows(Ranks(), 0.0)
    with Saver(tmp_path, Ranks(), Keep()) as saver:
        with pytest.raises(ValueError, match="not JSON compliant"):
            saver.save(1, {}, rows, start, {"loss": float("nan")})
        with pytest.raises(ValueError, match="at most"):
            saver.save(1, {}, rows, start, {"history": "x" * (5 << 20)})
    with pytest.raises(ValueError, match="a name with a line end"):
        Saver(tmp_path, Ranks(), Keep(), labels=["a\nb"])
    assert not list(tmp_path.iterdir())


def _failing(ranks: Ranks, folder: str, asynchronous: bool, where: str) -> list[str]:
    """A first save, one that fails on one rank, and one after it: what each says."""
    said = []
    rows, start = _rows(ranks, 1.0)

    def after(save: Published) -> None:
        if where == "unexpected in after":
            raise ZeroDivisionError("a fault of the program")
        raise CheckpointError("model.pt: not written")

    with Saver(Path(folder), ranks, Keep(), asynchronous) as saver:
        for step in (1, 2, 3):
            fails = step == 2
            if fails and where == "start" and ranks.is_first:
                Path(folder, ".step-000000000.unfinished").write_text("cannot be removed as a folder")
            try:
                wrong = {"nothing": torch.zeros(1, dtype=torch.complex64)} if fails and where == "write" else {}
                last_fails = ranks.rank == ranks.world_size - 1
                saver.save(step, {}, rows | (wrong if last_fails else {}), start, {},
                           after=after if fails and "after" in where else None)
                saver.finish()
                said.append("")
            except (CheckpointError, DistributedError) as error:
                said.append(f"{error.status} {error}")
            if ranks.is_first:
                Path(folder, ".step-000000000.unfinished").unlink(missing_ok=True)
            distributed.all_values(None, ranks)
    return said


@pytest.mark.parametrize("where", ["start", "write", "after", "unexpected in after"])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_what_fails_on_one_rank_fails_on_all_and_spares_the_other_saves(on_ranks, tmp_path, world, asynchronous, where):
    expected = {
        "start": "4 .*cannot start a save on rank 0", "write": f"6 .*cannot write on rank {world - 1}: KeyError",
        "after": "4 model.pt: not written", "unexpected in after": "6 .*saved, but on rank 0: ZeroDivisionError",
    }[where]
    status, _, part = expected.partition(" ")
    for said in on_ranks(world, _failing, str(tmp_path), asynchronous, where):
        assert said[0] == said[2] == ""
        assert said[1].startswith(status)
        assert part.removeprefix(".*") in said[1]
    good = [path.name for path in checkpoint.saves(tmp_path) if not checkpoint.problems(path)]
    kept = ["step-000000001", "step-000000003"] if "after" not in where else ["step-000000002", "step-000000003"]
    assert good == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def _save_ten(folder: Path, step: int, width: int, keep: Keep | None = None) -> None:
    rows, start = _rows(Ranks(), float(step), width)
    with Saver(folder, Ranks(), keep or Keep()) as saver:
        saver.save(step, {"x": torch.full((4,), float(step))}, rows, start, {})


def _no_room(folder: Path) -> None:
    """Saves on a disk that takes files of 20 kB: the rows do not fit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with pytest.raises(CheckpointError, match=rf"cannot write on rank 0: .*{os.strerror(errno.EFBIG)}"):
        _save_ten(folder, 2, width=1000)


def test_no_room_for_a_file_is_an_error_and_the_save_before_stays(tmp_path):
    _save_ten(tmp_path, 1, width=1000)
    assert _in_a_fork(lambda: _no_room(tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"], "what was written of it is gone"
    assert checkpoint.problems(tmp_path / "step-000000001") == []


@pytest.mark.parametrize("options", ["size=300k", "ro"])
def test_a_full_and_a_read_only_disk(tmp_path, options):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "x", tmp_path], check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        _save_ten(tmp_path, 1, width=3000)
        if options == "ro":
            subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        else:
            _save_ten(tmp_path, 2, width=3000)  # two fit
        with pytest.raises(CheckpointError, match=os.strerror(errno.EROFS if options == "ro" else errno.ENOSPC)):
            _save_ten(tmp_path, 3, width=3000)
        saved = checkpoint.latest(tmp_path, Ranks())
        assert saved is not None
        assert (saved.rows(0, CLASSES)["weight"] == saved.step).all()
        assert not list(tmp_path.glob(".*"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def _two_processes(main: Callable[[int, str], None]) -> list[int]:
    """Run main(rank, port) in two forks; rank 1 is killed once rank 0 is gone. Their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            try:
                os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                main(rank, port)
            except BaseException:
                traceback.print_exc()
            os._exit(99)
        children.append(child)
    first = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
    os.kill(children[1], signal.SIGKILL)
    return [first, os.waitstatus_to_exitcode(os.waitpid(children[1], 0)[1])]


def _at(point: str, action: Callable[[], None]) -> None:
    """Do something where a save of this process is at a point. Hooks cannot be taken away: for forks only."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "recognition.checkpoint" and arguments[0] == point:
            action()

    sys.addaudithook(hook)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_dies_or_stops_in_a_save_keeps_nobody(tmp_path, monkeypatch, end):
    """A dead peer is told at once, with training's own words for it; a stopped one does not hold up who leaves."""
    monkeypatch.setattr(saver, "LEAVING_SECONDS", 0.3)
    _save_ten(tmp_path, 1, width=3)

    def main(rank: int, port: str) -> None:
        ranks = distributed.start(timeout_seconds=3600)  # nothing here may wait for that
        if rank == 1:
            _at("rows written", lambda: os.kill(os.getpid(), end))
        rows, start = _rows(ranks, 2.0)
        try:
            with Saver(tmp_path, ranks, Keep()) as saves:
                saves.save(2, {}, rows, start, {})
                if end == signal.SIGKILL:
                    saves.finish()
                raise ZeroDivisionError("what ends the training")
        except ZeroDivisionError:
            os._exit(20)
        except RuntimeError:
            os._exit(10)

    assert _two_processes(main) == [10 if end == signal.SIGKILL else 20, -signal.SIGKILL]
    assert [path.name for path in checkpoint.saves(tmp_path)] == ["step-000000001"]
    _save_ten(tmp_path, 3, width=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000003"]
