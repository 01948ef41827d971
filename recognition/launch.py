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
import json
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from recognition.compare import compare
from recognition.config import find_sets, load, read_file
from recognition.cpus import available_cpus
from recognition.data.dataset import open_dataset
from recognition.errors import DistributedError, SettingsError, run_command
from recognition.finish import finish

CPU_RANKS = 2


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
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="run with each of these seeds")
    parser.add_argument("--side-by-side", type=int, default=1, metavar="N",
                        help="of several runs, so many at a time, each with its share of the GPUs or cores")
    parser.add_argument("--single", action="store_true", help="a config with variants alone, as it stands")
    options = parser.parse_args(list(arguments))
    several = len(options.configs) > 1 or options.seeds
    if several or (not options.single and hasattr(read_file(options.configs[0]), "variants")):
        return _compare(options)
    return run_one(options.configs[0], options.overrides, options.fresh)


def _compare(options: argparse.Namespace) -> int:
    if options.fresh:
        raise SettingsError("--fresh starts one run over; of several, move those aside that are to be run again")
    if _environment("NNODES", 1) > 1:
        raise SettingsError("several runs are compared on one machine; NNODES is for a single run")
    return compare(options.configs, options.seeds, options.overrides, options.side_by_side, options.single)


def run_one(path: str, overrides: Sequence[str], fresh: bool) -> int:
    """Train, export and evaluate one run; its exit status."""
    nodes, node_rank, local_ranks = (_environment(*v) for v in (("NNODES", 1), ("NODE_RANK", 0), ("NPROC", _ranks())))
    config = load(path, overrides, nodes * local_ranks)
    prepare = getattr(read_file(path), "prepare", None)
    if prepare is not None:
        prepare(config)
    find_sets(config)
    if fresh and node_rank == 0:
        open_dataset(config.data.root)  # what would stop the new run must not cost the old one its place
        put_aside(config.folder)
    print(f"starting {local_ranks} rank{'s' * (local_ranks > 1)} on this machine", flush=True)
    command = ["-m", "recognition.train", path, *(["--set", *overrides] if overrides else [])]
    status = launch(command, nodes, node_rank, local_ranks)
    if status == 0 and node_rank == 0:
        finish(config)
    return status


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


def launch(command: Sequence[str], nodes: int, node_rank: int, local_ranks: int) -> int:
    """Run `python COMMAND` on all ranks of this node; 0, or the exit status of what went wrong."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // local_ranks)))
    # Batches of images are large: malloc would give each back to the system and fetch it anew, page by page.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 31))
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it would add its own tables to what is said here
    with tempfile.TemporaryDirectory(prefix="run-failures-") as failures:
        os.environ["RUN_FAILURES"] = failures
        try:
            elastic_launch(_launch_config(nodes, node_rank, local_ranks), sys.executable)(*command)
        except ChildFailedError as error:
            return _cause(Path(failures), error)
        except SignalException as error:
            number = signal.Signals(error.sigval)
            print(f"stopped by {number.name}; the same command goes on from the last checkpoint", file=sys.stderr)
            return 128 + number.value
        finally:
            # The launcher leaves its own handlers behind.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0


def _launch_config(nodes: int, node_rank: int, local_ranks: int) -> LaunchConfig:
    config = partial(
        LaunchConfig, min_nodes=nodes, max_nodes=nodes, nproc_per_node=local_ranks, max_restarts=0,
        start_method="spawn", monitor_interval=0.2, run_id=os.environ.get("MASTER_PORT", "none"),
    )
    if nodes == 1 and "MASTER_ADDR" not in os.environ:
        return config(rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost")
    address = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', '29500')}"
    return config(rdzv_backend="static", rdzv_endpoint=address, rdzv_configs={"rank": node_rank, "timeout": 900})


def _cause(failures: Path, error: ChildFailedError) -> int:
    """Print why the ranks failed, the cause alone and once, and return its status.

    A known cause (2 to 5) goes first, then the earliest fault; a rank that ended without a word goes before the ranks
    that merely lost it.
    """
    paths = failures.glob("rank-*.json")
    notes = {int(path.stem.removeprefix("rank-")): json.loads(path.read_text()) for path in paths}
    silent = {rank: failure.exitcode for rank, failure in error.failures.items() if rank not in notes}
    ended = {rank: code for rank, code in silent.items() if code not in (0, 130, -signal.SIGTERM)}
    if not notes and not ended:
        return 130 if 130 in silent.values() else 128 + signal.SIGTERM
    if notes:
        cause = min(notes.values(), key=lambda note: (note["status"] == DistributedError.status, note["time"]))
        if cause["status"] != DistributedError.status or not (ended and cause["lost_peer"]):
            print(f"{cause['traceback']}error: {cause['message']}", file=sys.stderr)
            return int(cause["status"])
    rank, code = min(ended.items())
    killed = " (killed; out of memory?)" if code == -signal.SIGKILL else ""
    raise DistributedError(f"rank {rank} ended with status {code} and left no reason{killed}")


if __name__ == "__main__":
    run_command(main)
