"""What saving costs training, waited for and beside it: `python benchmarks/checkpoint.py --classes 100000 1000000`.

Measured for each number of classes, on one rank with centres, momentum and memory of d = 512 in float32:

    stall      seconds in which training does not step: the call of `save`
    written    seconds until the save is complete on disk, read back
    slowdown   share of training's steps lost while the save is written beside it; the step is a matrix product
    share      of training's time lost with a save every --interval seconds: (stall + slowdown · written) / interval

The last table is on paper: 10M classes over R ranks with the rates of --link (device to host, GB/s a rank), --disk
(GB/s of all ranks together) and the hash measured here. Saves are made in a folder on the disk that is to be judged
(--folder). Proven by tests/benchmarks/test_checkpoint_benchmark.py.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from prettytable import PrettyTable

from recognition.checkpoint import Keep, Saver
from recognition.distributed import Ranks
from recognition.errors import run_command

ON_PAPER = 10_000_000
ROW_TENSORS = ("weight", "velocity", "memory")
STAMP_BYTES = 8


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    options = parse(arguments)
    rates = {"hash": hash_rate(), "link": options.link * 1e9, "disk": options.disk * 1e9}
    rows = []
    for classes in options.classes:
        for asynchronous in (False, True):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                row = measure(Path(folder), classes, asynchronous, options)
            row["share"] = share(row, options.interval)
            rows.append(row)
    paper = [on_paper(ranks, asynchronous, options.size, rates, options.interval)
             for ranks in options.ranks for asynchronous in (False, True)]
    result = {"measured": rows, "paper": paper, "rates": rates, "interval": options.interval, "size": options.size,
              "device": options.device}
    report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What saving costs training.")
    parser.add_argument("--classes", type=int, nargs="+", default=[100_000], help="numbers of classes to measure")
    parser.add_argument("--size", type=int, default=512, help="embedding size d (default 512)")
    parser.add_argument("--backbone", type=float, default=65e6, help="parameters of the backbone (default 65e6, R100)")
    parser.add_argument("--saves", type=int, default=3, help="saves of which the last ones count (default 3)")
    parser.add_argument("--interval", type=float, default=1800, help="seconds between two saves (default 1800)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64], help="ranks on paper (default 8 64)")
    parser.add_argument("--link", type=float, default=25, help="device to host on paper, GB/s a rank (default 25)")
    parser.add_argument("--disk", type=float, default=2, help="disk on paper, GB/s of all ranks (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--folder", type=Path, help="where to save (default: the folder for temporary files)")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args(arguments)


def measure(folder: Path, classes: int, asynchronous: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Stall, time until complete, and slowdown of a save; the first save, which takes its memory, is not counted."""
    rows = {name: torch.randn(classes, options.size, device=options.device) for name in ROW_TENSORS}
    rows["stamp"] = torch.zeros(classes, dtype=torch.int64, device=options.device)
    # Backbone, momentum backbone and the optimiser's momentum.
    replicated = {f"part{n}": torch.randn(int(options.backbone), device=options.device) for n in range(3)}
    step = Step(options.device)
    idle = step.rate(seconds=1.0)
    stalls, written, lost = [], [], []
    with Saver(folder, Ranks(), Keep(last=1), asynchronous) as saver:
        for number in range(1, options.saves + 1):
            step.wait()
            begin = time.perf_counter()
            saver.save(number, replicated, rows, 0, {})
            step.wait()
            stalls.append(time.perf_counter() - begin)
            steps, busy_since = 0, time.perf_counter()
            while saver.is_busy:
                steps += step()
            busy = time.perf_counter() - busy_since
            lost.append(max(0.0, 1 - steps / busy / idle) if asynchronous else 0.0)
            written.append(time.perf_counter() - begin)
            (save,) = folder.glob("step-*")
    num_bytes = sum(path.stat().st_size for path in save.iterdir())
    counted = slice(1, None) if options.saves > 1 else slice(None)

    def mean(values: list[float]) -> float:
        return sum(values[counted]) / len(values[counted])

    return {"classes": classes, "asynchronous": asynchronous, "bytes": num_bytes, "stall": mean(stalls),
            "first_stall": stalls[0], "written": mean(written), "slowdown": mean(lost)}


class Step:
    """Stands for a step of training: a matrix product that uses what the device has."""

    def __init__(self, device: str) -> None:
        side = 8192 if device == "cuda" else 768
        self.device, self.factor = device, torch.randn(side, side, device=device)

    def __call__(self) -> int:
        """Take one step and wait for it."""
        self.factor @ self.factor
        self.wait()
        return 1

    def wait(self) -> None:
        """Until the device is through."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def rate(self, seconds: float) -> float:
        """Steps a second with nothing beside them."""
        self()
        steps, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            steps += self()
        return steps / (time.perf_counter() - begin)


def hash_rate() -> float:
    """Bytes a second of SHA-256 on one core."""
    data, begin, count = bytes(8 << 20), time.perf_counter(), 16
    for _ in range(count):
        hashlib.sha256(data).digest()
    return count * len(data) / (time.perf_counter() - begin)


def share(row: dict[str, Any], interval: float) -> float:
    """Of training's time lost with a save every so many seconds of training."""
    lost: float = row["stall"] + row["slowdown"] * row["written"]
    return lost / (interval + row["stall"])


def on_paper(ranks: int, asynchronous: bool, size: int, rates: dict[str, float], interval: float) -> dict[str, Any]:
    """A save of 10M classes: each rank's bytes go over its link, are hashed twice, written and read back."""
    num_bytes = ON_PAPER * (len(ROW_TENSORS) * size * 4 + STAMP_BYTES)
    copy = num_bytes / ranks / rates["link"]
    on_disk = 2 * max(num_bytes / rates["disk"], num_bytes / ranks / rates["hash"])
    row = {"classes": ON_PAPER, "ranks": ranks, "asynchronous": asynchronous, "bytes": num_bytes,
           "stall": copy if asynchronous else copy + on_disk, "written": copy + on_disk, "slowdown": 0.0}
    return row | {"share": share(row, interval)}


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    every = f"share, a save every {result['interval']:.0f} s"
    table = PrettyTable(["classes", "saving", "GB", "stall s", "written s", "slowdown", every], align="r")
    table.title = f"measured on one rank, {result['device']}, d = {result['size']}, float32"
    for row in result["measured"]:
        table.add_row([f"{row['classes']:,}", kind(row), f"{row['bytes'] / 1e9:.2f}", f"{row['stall']:.2f}",
                       f"{row['written']:.2f}", f"{row['slowdown']:.0%}", f"{row['share']:.3%}"])
    print(table)
    rates = ", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in result["rates"].items())
    table = PrettyTable(["classes", "ranks", "saving", "GB", "stall s", "written s", every], align="r")
    table.title = f"on paper: {rates}"
    for row in result["paper"]:
        table.add_row([f"{row['classes']:,}", row["ranks"], kind(row), f"{row['bytes'] / 1e9:.2f}",
                       f"{row['stall']:.2f}", f"{row['written']:.1f}", f"{row['share']:.3%}"])
    print(table)


def kind(row: dict[str, Any]) -> str:
    """How a row was saved, in words."""
    return "beside training" if row["asynchronous"] else "waited for"


if __name__ == "__main__":
    run_command(main)
