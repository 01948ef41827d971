"""What makes training on a CPU fast or slow, one thing changed at a time: `python benchmarks/cpu.py`.

Each variant is a run as the launcher would start it, with real loaders: its own processes, started with its own
environment, take some steps to warm up and then the steps that count. The variants take turns, round by round, so that
a busy machine slows all of them; the ratios are medians over the rounds of a round's own ratios to the first variant.
Nothing is compiled but in the variant that is named for it: `speed.compile=auto` would go by the length of a run.

    ratio        images a second over those of the first variant: above 1 is faster
    CPU ratio    CPU seconds of all ranks and threads over the first's: below 1 takes less work
    faults       minor page faults an image: what malloc gives back and fetches anew
    start        seconds from an open data set to the end of the warm-up, compilation included

    python benchmarks/cpu.py --json cpu.json                      # some minutes a backbone on two cores
    python benchmarks/cpu.py --backbone tiny --batch 64 --only "2 ranks × 1" "1 rank × 2" bf16

Proven by tests/benchmarks/test_cpu.py.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from prettytable import PrettyTable
from tqdm import tqdm

from benchmarks.ranks import on_ranks
from benchmarks.step import pictures
from recognition.assembly import assemble
from recognition.backbones import BACKBONES
from recognition.config import load
from recognition.cpus import available_cpus, rank_environment
from recognition.distributed import Ranks
from recognition.errors import SettingsError, run_command
from recognition.launch import CPU_RANKS
from recognition.machine import matrix_instructions
from recognition.train import train_step

CONFIG = Path(__file__).with_name("step_config.py")
WARM_UP = 4
RATE = 1e-6
COMMON = ("epochs=1000", "speed.compile=off")
"""Settings that all variants start from: no run ends while it is measured, and none is compiled unasked."""


@dataclass(frozen=True)
class Variant:
    """One way to train. ranks × threads of torch; overrides: settings, as a.b=value; malloc: as the launcher sets it.

    flush: torch.set_flush_denormal.
    """

    name: str
    ranks: int
    threads: int
    overrides: tuple[str, ...] = ()
    malloc: bool = True
    flush: bool = False


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    options = parse(arguments)
    chosen = [variant for variant in variants(available_cpus()) if options.only is None or variant.name in options.only]
    if not chosen:
        raise SettingsError(f"--only: expected some of {', '.join(v.name for v in variants(available_cpus()))}")
    rows = []
    with pictures("synthetic", options.classes, max(4 * options.batch, 1024)) as (folder, _):
        for backbone in options.backbone:
            rows += measure(backbone, str(folder), chosen, options)
    result = {"torch": torch.__version__, "machine": platform.machine(), "cpus": available_cpus(),
              "instructions": matrix_instructions(), "batch": options.batch, "rows": rows}
    print(table(rows, options.batch))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Ways to train on a CPU.")
    add = parser.add_argument
    add("--backbone", nargs="+", default=["tiny", "mobilefacenet", "iresnet18"], choices=BACKBONES, metavar="NAME")
    add("--batch", type=int, default=64, help="images a step, of all ranks (default 64)")
    add("--classes", type=int, default=2000, help="default 2000")
    add("--steps", type=int, default=10, help="that count, in a round (default 10)")
    add("--rounds", type=int, default=5, help="default 5")
    add("--only", nargs="+", metavar="VARIANT", help="names of variants; the others are compared with the first")
    add("--json", type=Path, help="write the result to this file")
    return parser.parse_args(arguments)


def variants(cpus: int) -> list[Variant]:
    """As the launcher starts a run on so many processors, then with one thing changed each."""
    ranks = CPU_RANKS
    threads = max(1, cpus // ranks)
    every = [Variant(f"{ranks} ranks × {threads}", ranks, threads)]
    every += [Variant(f"{n} rank{'s' * (n > 1)} × {cpus // n}", n, cpus // n) for n in (1, cpus) if n != ranks]
    every += [
        Variant("bf16", ranks, threads, ("precision=bf16",)),
        Variant("compiled blocks", ranks, threads, ("speed.compile=blocks",)),
        Variant("malloc as it comes", ranks, threads, malloc=False),
        Variant("denormals flushed", ranks, threads, flush=True),
        Variant("twice the threads to decode", ranks, threads, (f"data.threads={2 * threads}",)),
        Variant("fallback loader", ranks, threads, ("data.reader=fallback",)),
    ]
    return every


def measure(backbone: str, root: str, chosen: Sequence[Variant], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each variant: medians over the rounds."""
    settings = [f"data.root={root}", f"backbone.name={backbone}", f"batch_size={options.batch}", *COMMON]
    rounds: list[list[dict[str, float]]] = []
    with tqdm(total=options.rounds * len(chosen), desc=backbone, unit="run", disable=None, leave=False) as bar:
        for _ in range(options.rounds):
            rounds.append([])
            for variant in chosen:
                rounds[-1].append(take(variant, settings, options.steps))
                bar.update()
    rows = []
    for number, variant in enumerate(chosen):
        found = [each[number] for each in rounds]
        pairs = [(each[0], each[number]) for each in rounds]
        row: dict[str, Any] = {"backbone": backbone, "name": variant.name, "rounds": found}
        for key in ("seconds", "cpu_seconds", "faults", "start"):
            row[key] = statistics.median(each[key] for each in found)
        row["ratios"] = [first["seconds"] / each["seconds"] for first, each in pairs]
        row["ratio"] = statistics.median(row["ratios"])
        row["cpu_ratio"] = statistics.median(each["cpu_seconds"] / first["cpu_seconds"] for first, each in pairs)
        rows.append(row)
    return rows


def take(variant: Variant, settings: Sequence[str], steps: int) -> dict[str, float]:
    """One round of a variant; seconds, CPU seconds and faults of a step, of the slowest rank and of all together."""
    environment: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("MALLOC_"))
    environment |= {name: value for name, value in rank_environment(variant.threads, {}).items()
                    if variant.malloc or not name.startswith("MALLOC_")}
    found = on_ranks(variant.ranks, train_some, (*settings, *variant.overrides), variant.flush, steps,
                     environment=environment)
    return {"seconds": max(each["seconds"] for each in found), "start": max(each["start"] for each in found),
            "cpu_seconds": sum(each["cpu_seconds"] for each in found), "faults": sum(each["faults"] for each in found)}


def train_some(ranks: Ranks, settings: Sequence[str], flush: bool, steps: int) -> dict[str, float]:
    """Some steps of a run on this rank."""
    if flush:
        torch.set_flush_denormal(True)
    begin = time.perf_counter()
    run = assemble(load(CONFIG, settings), ranks)
    start = wall = cpu = 0.0
    faults = 0
    for number, batch in enumerate(run.loader.batches(0, WARM_UP + steps)):
        if number == WARM_UP:
            wall, cpu, faults = time.perf_counter(), time.process_time(), page_faults()
            start = wall - begin
        figures = train_step(run, batch, RATE)
        run.guard.post(run.step, figures.bad)
    return {"seconds": (time.perf_counter() - wall) / steps, "cpu_seconds": (time.process_time() - cpu) / steps,
            "faults": (page_faults() - faults) / steps, "start": start}


def page_faults() -> int:
    """Minor page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def table(rows: Sequence[dict[str, Any]], batch: int) -> PrettyTable:
    """The rows for people."""
    columns = ["backbone", "variant", "ratio", "of rounds", "CPU ratio", "img/s", "faults", "start s"]
    out = PrettyTable(columns, align="r")
    out.align["variant"] = "l"
    for row in rows:
        spread = f"{min(row['ratios']):.2f}–{max(row['ratios']):.2f}"
        out.add_row([row["backbone"], row["name"], f"{row['ratio']:.2f}", spread, f"{row['cpu_ratio']:.2f}",
                     f"{batch / row['seconds']:.0f}", f"{row['faults'] / batch:.0f}", f"{row['start']:.1f}"])
    return out


if __name__ == "__main__":
    run_command(main)
