"""torchrun's elastic agent with the project's rules: what is restarted, what is not, and how ranks are ended.

The agent (torch.distributed.elastic) starts the ranks of one machine, watches them, and meets the agents of the other
machines at the rendezvous. Three rules are added:

- A failure with a known cause (settings, data, checkpoint, numbers: status 2 to 5), and a stop that was asked for,
  end the run; only an unexpected one is restarted, at most `max_restarts` times, with the machines that are left.
- Ranks that lost a peer get END_SECONDS to say so before they are killed; ranks that are to stop, STOP_SECONDS.
- Signals that come while the ranks are being ended change nothing.

What the ranks note of their ends is read by recognition/cause.py; a restart begins with no notes.
Proven by tests/recognition/test_restarts.py.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from recognition.cause import cause, failures, is_final, was_stopped
from recognition.errors import DistributedError

END_SECONDS, STOP_SECONDS = 10, 30
WATCH_SECONDS = 0.2  # between two looks at the ranks


class GroupEndedError(Exception):
    """The ranks of this machine ended for a reason that starting again would not mend."""


class Agent(LocalElasticAgent):
    """One machine's agent. notes: the folder of the ranks' notes.  exit_codes: of the ranks that failed last."""

    def __init__(self, spec: WorkerSpec, notes: Path, logs: Path) -> None:
        super().__init__(spec, DefaultLogsSpecs(str(logs)), start_method="spawn", shutdown_timeout=STOP_SECONDS)
        self.notes = notes
        self.exit_codes: dict[int, int] = {}
        self._failed = False

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = self._ended(worker_group)
        if any(codes.values()):
            self.exit_codes = self._end_the_others(worker_group)
        result = super()._monitor_workers(worker_group)
        self._failed = result.is_failed()
        if self._failed and not self.exit_codes:  # it ended between the two looks
            self.exit_codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        return result

    def _ended(self, worker_group: WorkerGroup) -> dict[int, int]:
        """Exit codes by rank of those that have ended, whose statuses stay there for the agent to collect."""
        codes = {}
        for worker, pid in self._pids(worker_group):
            with contextlib.suppress(ChildProcessError):  # collected already
                if end := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    codes[worker] = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        return codes

    def _end_the_others(self, worker_group: WorkerGroup) -> dict[int, int]:
        """After a failure: wait for the others to lose their peer and say so, then kill. Codes of those not killed."""
        deadline = time.monotonic() + END_SECONDS
        codes = self._ended(worker_group)
        while len(codes) < len(worker_group.workers) and time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)
            codes = self._ended(worker_group)
        for worker, pid in self._pids(worker_group):
            if worker not in codes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        return codes

    def _pids(self, worker_group: WorkerGroup) -> list[tuple[int, int]]:
        """Rank and process of the workers."""
        pids = self._pcontext.pids() if self._pcontext else {}
        return [(worker.global_rank, pids[worker.local_rank]) for worker in worker_group.workers
                if worker.local_rank in pids]

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._stop_workers(worker_group)  # the others of this machine, so that all notes are there
        # A machine that joins stops the ranks of one agent, and the guard those of the others.
        joined = worker_group.spec.rdzv_handler.num_nodes_waiting() > 0
        if is_final(self.notes) or (self._failed and was_stopped(self.notes) and not joined):
            raise GroupEndedError
        if self._failed and not was_stopped(self.notes):
            count, most = worker_group.spec.max_restarts - self._remaining_restarts, worker_group.spec.max_restarts
            print(f"{cause(self.notes, self.exit_codes)[1]}\nstarting again ({count} of {most})", file=sys.stderr)
        else:
            print("machines joined or left; starting again from where the run stands", file=sys.stderr)
        for note in self.notes.iterdir():
            note.unlink()
        self.exit_codes = {}
        super()._restart_workers(worker_group)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = STOP_SECONDS) -> None:
        # What ends a terminal or a session is a stop like any other to a rank.
        with _deaf():
            super()._shutdown(signal.SIGINT if death_sig == signal.SIGINT else signal.SIGTERM, timeout)


def run_ranks(
    command: Sequence[str], rendezvous: RendezvousParameters, ranks: int, max_restarts: int, folder: Path
) -> tuple[int, str]:
    """Run `python COMMAND` on all ranks of this machine until they end; exit status, and the reason where it is not 0.

    folder: an empty one for the ranks' notes.
    """
    notes, logs = folder / "notes", folder / "logs"
    notes.mkdir()
    logs.mkdir()
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it would add its own tables to what is said here
    os.environ["RUN_NOTES"], os.environ["RUN_LAUNCHER"] = str(notes), str(os.getpid())
    # A store for each start: in one that is kept, ranks find the addresses of those before them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        handler = get_rendezvous_handler(rendezvous)
        spec = WorkerSpec(
            role="rank", local_world_size=ranks, entrypoint=sys.executable, args=tuple(command), rdzv_handler=handler,
            max_restarts=max_restarts, monitor_interval=WATCH_SECONDS, local_addr=rendezvous.local_addr,
            **_static_address(rendezvous),
        )
        agent = Agent(spec, notes, logs)
        try:
            failed = agent.run().is_failed()
        except GroupEndedError:
            failed = True
        except SignalException as stop:
            _ignore_signals()  # the next one has nothing left to stop
            return _stopped(signal.Signals(stop.sigval), notes, agent.exit_codes, ranks)
        finally:
            with _deaf():
                handler.shutdown()
    except (RendezvousError, dist.DistError) as error:  # the other machines are not there, or have left
        return DistributedError.status, f"error: {rendezvous.endpoint}: {type(error).__name__}: {_first_line(error)}"
    return cause(notes, agent.exit_codes) if failed else (0, "")


def _stopped(number: signal.Signals, notes: Path, exit_codes: dict[int, int], ranks: int) -> tuple[int, str]:
    """What came of ranks that were asked to stop: a failure of the save that they ended with goes first."""
    noted = failures(notes).values()
    if any(note["status"] < 128 and not note["lost_peer"] for note in noted):
        return cause(notes, exit_codes)
    saved = len(noted) == ranks and was_stopped(notes)
    return 128 + number, f"stopped by {number.name}" + ("" if saved else " before anything more could be saved")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _static_address(rendezvous: RendezvousParameters) -> dict[str, Any]:
    if rendezvous.backend != "static":
        return {}
    host, _, port = rendezvous.endpoint.rpartition(":")
    return {"master_addr": host, "master_port": int(port)}


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """No signal cuts this short: the ranks would be left behind. The handlers come back."""
    before = _ignore_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ignore_signals() -> dict[int, Any]:
    """Ignore what would stop this process. Returns the handlers of before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    return {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
