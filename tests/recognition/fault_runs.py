"""Runs for the tests of faults: ranks forked from one process that has imported everything, killed where a test says.

A rank is what recognition.train makes of it, with its real files, checkpoints and exchanges; only the way it is started
differs from the launcher's. `kill` names a point of a save (recognition.checkpoint.POINTS) and the step saved there.
Used by test_faults.py and test_kills.py.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from recognition.progress import read_progress

CONFIG = """
from recognition.backbones import BackboneSettings
from recognition.config import *
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.optimizer import OptimizerSettings

def config():
    return Config(
        name="run", output={output!r}, seed=5, batch_size=16, epochs=5, timeout_seconds=20,
        data=DataSettings({root!r}, reader="fallback"), backbone=BackboneSettings("tiny", 32, dropout=0.2),
        head=HeadSettings(ArcFace(s=16.0, m=0.3), sample_rate=0.5, inject=QAFace(start_epoch=0.5, stat_momentum=0.5)),
        optimizer=OptimizerSettings(lr=0.05), evaluation=EvaluationSettings(every_epochs=0),
        checkpoint=CheckpointSettings(every_epochs=0, every_steps=5, every_minutes=0), log=LogSettings(1, False),
    )
"""
_PARENT = multiprocessing.get_context("forkserver")
_PARENT.set_forkserver_preload(["recognition.train"])

STEPS = 30  # 5 epochs of 6
SAVED_EVERY = 5


@dataclass(frozen=True)
class Kill:
    """SIGKILL (or another signal) for `ranks` where a save of `step` reaches `point`."""

    point: str
    step: int
    ranks: tuple[int, ...]
    signal: int = signal.SIGKILL


def write_config(folder: Path, root: Path) -> Path:
    """A config file whose run lies in `folder`/run."""
    path = folder / "config.py"
    path.write_text(CONFIG.format(output=str(folder), root=str(root)))
    return path


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(config: Path, overrides: tuple[str, ...], environment: dict[str, str], kill: Kill | None, out: Path) -> None:
    os.environ.update(environment)
    os.setsid()
    log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from recognition.train import run_rank

    torch.set_num_threads(1)
    if kill is not None and int(environment["RANK"]) in kill.ranks:

        def hook(event: str, arguments: tuple) -> None:
            if event == "recognition.checkpoint" and arguments == (kill.point, kill.step):
                os.kill(os.getpid(), kill.signal)

        sys.addaudithook(hook)
    run_rank([str(config), *(["--set", *overrides] if overrides else [])])


class Ranks:
    """The ranks of one start."""

    def __init__(self, config: Path, world: int, *overrides: str, kill: Kill | None = None) -> None:
        self.folder = config.parent
        self.notes = self.folder / "notes"
        self.notes.mkdir(exist_ok=True)
        for note in self.notes.iterdir():
            note.unlink()
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world),
                  "LOCAL_WORLD_SIZE": str(world), "CUDA_VISIBLE_DEVICES": "", "RUN_NOTES": str(self.notes)}
        self.processes: list[BaseProcess] = []
        for rank in range(world):
            environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = _PARENT.Process(
                target=_rank, args=(config, overrides, environment, kill, self.folder / f"rank-{rank}.log"))
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 60) -> list[int | None]:
        """Exit codes of all ranks; one that still lives after so many seconds is killed, its code None."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join()
        return codes

    def until(self, step: int, seconds: float = 60) -> None:
        """Wait until rank 0 is past a step."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(process.is_alive() for process in self.processes):
            path = self.notes / "progress-0"
            if path.exists() and path.stat().st_size and read_progress(path).step >= step:
                return
            time.sleep(0.002)
        raise AssertionError(f"step {step} was not reached: {self.said()}")

    def signal(self, number: int, ranks: tuple[int, ...] | None = None) -> None:
        """Send a signal to all ranks, or to some."""
        for rank, process in enumerate(self.processes):
            if process.is_alive() and (ranks is None or rank in ranks):
                assert process.pid is not None
                os.kill(process.pid, number)

    def said(self) -> str:
        """The last of what the ranks wrote."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("rank-*.log")))


def steps_of(folder: Path) -> dict[int, str]:
    """The losses of a run's log as hexadecimal floats, by step."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: float(line["loss"]).hex() for line in lines if "loss" in line}


def newest_state(folder: Path) -> dict[str, bytes]:
    """Every tensor file of the newest save, by name, and the plain numbers without paths."""
    save = sorted((folder / "run" / "checkpoints").glob("step-*"))[-1]
    found = {path.name: path.read_bytes() for path in save.glob("*.safetensors")}
    state = json.loads((save / "state.json").read_text())
    state["settings"].pop("output")
    return found | {"state": json.dumps(state, sort_keys=True).encode()}
