"""What run.sh starts: checks the settings, makes the data, trains on all ranks, exports and evaluates.

    settings (all mistakes, status 2) → the config's prepare() → torchrun's launcher, one recognition.train a rank
    → on the first node: ONNX file, its scores on all sets configured, closing table

The ranks leave the reason of a failure in files, so that the status returned is the cause's (recognition/errors.py)
and not the launcher's, and a cause that all ranks found is told once. Data and settings errors are never retried.
Environment, as usual with torchrun: NPROC (ranks on this machine; default one per GPU, else 2), NNODES, NODE_RANK,
MASTER_ADDR, MASTER_PORT.
Proven by tests/recognition/test_launch.py.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.distributed.elastic.rendezvous import RendezvousParameters

from eval.ijb_lists import find_target
from recognition.agent import run_ranks
from recognition.compare import compare, is_comparison, machine_shares, require_one_machine
from recognition.config import find_sets, load, read_file
from recognition.cpus import available_cpus, rank_environment
from recognition.data.dataset import open_dataset
from recognition.doctor import examine
from recognition.errors import SettingsError, run_command
from recognition.finish import finish
from recognition.machine import processor_key
from recognition.profiling import Profile
from recognition.status import read_status, write_status

CPU_RANKS = 2
CHECKOUT = Path(__file__).resolve().parent.parent
COMPILED = CHECKOUT / "build" / "compiled"
"""Where torch keeps what it compiled, by processor, for the next run: its own place, /tmp, is lost with a container."""


def main(arguments: Sequence[str]) -> int:
    """Train, export and evaluate what a config describes."""
    parser = argparse.ArgumentParser(prog="bash run.sh", description=main.__doc__, epilog=(
        "Without CONFIG: configs/demo.py. The same command goes on where it stopped. "
        "Environment: NPROC, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT as with torchrun."))
    parser.add_argument("configs", nargs="*", default=["configs/demo.py"], metavar="CONFIG", help="a file of configs/; "
                        "of several, or with --seeds, every one is run and one table compares them")
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="a.b=VALUE",
                        help="replace a setting")
    parser.add_argument("--fresh", action="store_true", help="put an earlier run of this name aside and start over")
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N",
                        help="after an unexpected failure start again, so often at most, with what is left"
                        " of the machines")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="run with each of these seeds")
    parser.add_argument("--side-by-side", type=int, default=1, metavar="N",
                        help="of several runs, so many at a time, each with its share of the GPUs or cores")
    parser.add_argument("--doctor", action="store_true", help="say what this machine has, what the run needs and how "
                        "long it takes, and write nothing")
    parser.add_argument("--json", metavar="FILE", help="with --doctor: the same as JSON")
    parser.add_argument("--profile", type=int, default=0, metavar="N",
                        help="look at N steps closely, see RUN/profile/summary.txt; the run goes on to its end")
    parser.add_argument("--single", action="store_true", help="a config with variants alone, as it stands")
    options = parser.parse_args(list(arguments))
    if options.doctor:
        return _examine(options)
    if options.json:
        raise SettingsError("--json goes with --doctor")
    Profile(options.profile)
    if is_comparison(options.configs, options.seeds, options.single):
        return _compare(options)
    return run_one(options.configs[0], options.overrides, options.fresh, options.max_restarts, options.profile)


def _examine(options: argparse.Namespace) -> int:
    if len(options.configs) > 1 or options.fresh:
        raise SettingsError("--doctor looks at one config, and starts nothing")
    shares, machines, local_ranks = _ranks_side_by_side(options), read_machines(), _environment("NPROC", _ranks())
    local_ranks = min(shares, default=local_ranks)
    alone = Machines(1, 1, 0, "", "")
    return examine(options.configs[0], options.overrides, lambda command: launch(command, alone, local_ranks, 0),
                   local_ranks, machines.most, options.json, options.seeds, options.single, shares)


def _ranks_side_by_side(options: argparse.Namespace) -> list[int]:
    """Ranks of each of the runs that a comparison has side by side; empty where there is one run at a time."""
    shares = machine_shares(options.side_by_side)
    compared = is_comparison(options.configs, options.seeds, options.single)
    return [int(share["NPROC"]) for share in shares] if len(shares) > 1 and compared else []


def _compare(options: argparse.Namespace) -> int:
    if options.fresh:
        raise SettingsError("--fresh starts one run over; of several, move those aside that are to be run again")
    if options.profile:
        raise SettingsError("--profile looks at a single run")
    require_one_machine(read_machines().most)
    return compare(options.configs, options.seeds, options.overrides, options.side_by_side, options.single)


def run_one(path: str, overrides: Sequence[str], fresh: bool, max_restarts: int = 0, profile: int = 0) -> int:
    """Train, export and evaluate one run; its exit status. profile: so many steps."""
    machines, local_ranks = read_machines(), _environment("NPROC", _ranks())
    config = load(path, overrides, machines.most * local_ranks)
    prepare = getattr(read_file(path), "prepare", None)
    if prepare is not None:
        prepare(config)
    if profile and not fresh and read_status(config.folder).get("state") in ("trained", "finished"):
        raise SettingsError(f"--profile {profile}: {config.folder} is trained to its end; --fresh starts it over")
    find_sets(config)
    for folder in config.evaluation.ijb:
        find_target(folder)
    if fresh and machines.rank == 0:
        open_dataset(config.data.root)  # what would stop the new run must not cost the old one its place
        put_aside(config.folder)
    print(f"starting {local_ranks} rank{'s' * (local_ranks > 1)} on this machine", flush=True)
    command = ["-m", "recognition.train", path, *(["--set", *overrides] if overrides else []),
               *(["--profile", str(profile)] if profile else [])]
    status, reason = launch(command, machines, local_ranks, max_restarts)
    told = read_status(config.folder)
    if status == 0:
        if machines.rank == 0:
            finish(config)
            write_status(config.folder, "finished")
        return 0
    if status > 128:
        from_where = f"step {told['step']}" if told.get("state") == "stopped" else "the last save, if there is one"
        print(f"{reason}; the same command goes on from {from_where}", file=sys.stderr)
    else:
        print(reason, file=sys.stderr)
        if config.folder.is_dir() and machines.rank == 0:
            write_status(config.folder, "failed", exit_status=status, reason=reason.splitlines()[-1])
    return status


@dataclass(frozen=True)
class Machines:
    """The machines of a run, as torchrun's environment describes them. least, most: how many; rank: this one's."""

    least: int
    most: int
    rank: int
    address: str
    port: str

    def rendezvous(self, max_restarts: int) -> RendezvousParameters:
        """Where and how their agents meet.

        A fixed number without restarts meets at a plain store, with the ranks in the order of NODE_RANK. Machines that
        may come and go, and restarts, take torchrun's c10d rendezvous, which numbers them itself.
        """
        fixed = self.least == self.most
        meet = partial(RendezvousParameters, run_id=self.port or "none", min_nodes=self.least, max_nodes=self.most)
        if self.most == 1 and not self.address:
            return meet(backend="c10d", endpoint="localhost:0", local_addr="localhost")
        endpoint = f"{self.address or '127.0.0.1'}:{self.port or '29500'}"
        if fixed and not max_restarts:
            return meet(backend="static", endpoint=endpoint, rank=self.rank, timeout=900, local_addr=None)
        return meet(backend="c10d", endpoint=endpoint, local_addr=None, is_host=self.rank == 0)


def read_machines() -> Machines:
    """NNODES (N, or MIN:MAX), NODE_RANK, MASTER_ADDR and MASTER_PORT. SettingsError for what cannot be."""
    text = os.environ.get("NNODES") or "1"
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", text):
        raise SettingsError(f"NNODES={text}: expected a whole number, or MIN:MAX")
    least, _, most = text.partition(":")
    machines = Machines(int(least), int(most or least), _environment("NODE_RANK", 0),
                        os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", ""))
    if machines.least > machines.most or machines.rank >= machines.most:
        raise SettingsError(f"NNODES={text}, NODE_RANK={machines.rank}: expected MIN ≤ MAX and a rank below")
    return machines


def _ranks() -> int:
    return torch.cuda.device_count() or CPU_RANKS


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not re.fullmatch(r"\d+", text) or (name != "NODE_RANK" and int(text) < 1):
        raise SettingsError(f"{name}={text}: expected a whole number")
    return int(text)


def put_aside(folder: Path) -> None:
    """Rename a run's folder to the first free NAME.old-N."""
    if folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
            number += 1
        folder.rename(aside)
        print(f"{folder} put aside as {aside}")


def launch(command: Sequence[str], machines: Machines, local_ranks: int, max_restarts: int) -> tuple[int, str]:
    """Run `python COMMAND` on all ranks of this machine; exit status, and the reason where it is not 0."""
    os.environ.update(rank_environment(max(1, available_cpus() // local_ranks), os.environ))
    there = next(folder for folder in (COMPILED, *COMPILED.parents) if folder.exists())
    if machines.most == 1 and os.access(there, os.W_OK):  # its locks are not made for what machines share
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILED / processor_key()))
    with tempfile.TemporaryDirectory(prefix="run-notes-") as folder:
        try:
            return run_ranks(command, machines.rendezvous(max_restarts), local_ranks, max_restarts, Path(folder))
        finally:
            # The agent leaves its own handlers behind.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    run_command(main)
