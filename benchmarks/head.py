"""Time per step and peak memory of the sharded head, plain Partial FC and full softmax: `python benchmarks/head.py`.

Times: all variants of a (classes, batch) take turns in one process, on one set of centres, so that a busy machine slows
all of them; medians over the rounds and their ratios to plain Partial FC at the same sampling rate are printed.
Peaks: each variant alone in a fresh process; what it needed above its own state (weights, momentum, injection's memory
and stamps). With injection every class is fresh and the write into the memory is part of the step. One rank; backbone
and data loader are not in it. Centres start as plain random numbers: what they are does not matter here.

    python benchmarks/head.py --quick                                         # half a minute
    python benchmarks/head.py --classes 1000000 --margins arcface --injections none --repeats 3 --json head.json
    python benchmarks/head.py --device cuda --batch 1024 --classes 200000 2000000 --plot head.png

Proven by tests/benchmarks/test_head_benchmark.py.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.baseline import head as baseline
from benchmarks.head_report import plot, report
from benchmarks.measure import high_water, in_fresh_process, memory_now, restart_high_water, time_steps
from recognition.distributed import Ranks
from recognition.errors import SettingsError, run_command
from recognition.heads import sharded
from recognition.heads.margins import MARGINS
from recognition.memory import INJECTIONS

RATE = 1e-6  # learning rate: the centres stay what they are, however long it runs
ROUND_SECONDS = 0.1  # shorter steps are repeated to fill this
MIB = 1 << 20
KINDS = ("plain", "plain, dense", "full softmax", "ours")


@dataclass(frozen=True)
class Problem:
    """What all variants of one process share. product: dtype of the matrix products."""

    classes: int
    batch: int
    size: int
    device: str
    product: str
    threads: int | None


@dataclass(frozen=True)
class Variant:
    """One contestant. kind: ours, plain (Partial FC), "plain, dense" (its sampling by autograd) or full softmax."""

    kind: str
    rate: float = 1.0
    margin: str = "arcface"
    inject: str = "none"
    tile_mib: float | None = None

    @property
    def name(self) -> str:
        """As the table and the plot call it, without the rate."""
        extras = [] if self.inject == "none" else [self.inject]
        extras += [] if self.tile_mib is None else [f"tiles of {self.tile_mib:g} MiB"]
        return ", ".join([self.kind, self.margin, *extras])


@dataclass(frozen=True)
class Contestant:
    """A variant ready to run. step: one whole step.  state: its centres' tensors by name."""

    step: Callable[[], object]
    state: dict[str, Tensor]


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    options = parse(arguments)
    rows = []
    for classes, batch in itertools.product(options.classes, options.batch):
        problem = Problem(classes, batch, options.size, options.device, options.product, options.threads)
        rows += measure(problem, list(variants(options)), options.repeats)
    result = {"torch": torch.__version__, "machine": platform.machine(), "device": options.device,
              "product": options.product, "threads": options.threads or torch.get_num_threads(), "rows": rows}
    report(rows)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Ratios of heads on this machine.")
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[10_000, 50_000], help="C (default 10000 50000)")
    add("--batch", type=int, nargs="+", default=[128], help="B (default 128)")
    add("--size", type=int, default=512, help="d, elements of an embedding (default 512)")
    add("--rates", type=float, nargs="+", default=[1.0, 0.1], help="sampling rates (default 1 0.1)")
    add("--margins", nargs="+", default=["arcface", "cosface"], choices=MARGINS, metavar="NAME",
        help=f"the first is everybody's where Partial FC has it (default arcface cosface): {', '.join(MARGINS)}")
    add("--injections", nargs="+", default=["none", "vpl", "qaface"], choices=INJECTIONS, metavar="NAME",
        help="default none vpl qaface")
    add("--tiles-mib", type=float, nargs="*", default=[16], help="tile budgets beside the default one (default 16)")
    add("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND",
        help="leave some out: 'plain' needs 5 times the weights' memory (default: " + " / ".join(KINDS) + ")")
    add("--repeats", type=int, default=5, help="rounds, of which the median counts (default 5)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="default cpu")
    add("--product", choices=["float32", "bfloat16"], help="dtype of products (default float32, on CUDA bfloat16)")
    add("--threads", type=int, help="CPU threads (default torch's)")
    add("--quick", action="store_true", help="a small problem, ours, plain and full softmax only")
    add("--json", type=Path, help="write the result to this file")
    add("--plot", type=Path, help="draw the result to this file (png, svg, …)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.classes, options.batch, options.repeats = [5000], [64], 3
        options.margins, options.injections, options.tiles_mib = ["arcface"], ["none"], []
    options.product = options.product or ("bfloat16" if options.device == "cuda" else "float32")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch sees no GPU here")
    return options


def variants(options: argparse.Namespace) -> Iterator[Variant]:
    """Ours at all rates with one thing changed at a time, and who it is compared with."""
    first = options.margins[0]
    theirs = first if first in baseline.MARGINS else "arcface"
    for rate in sorted(options.rates, reverse=True):
        others = [Variant("plain", rate, theirs)]
        others.append(Variant("plain, dense", rate, theirs) if rate < 1 else Variant("full softmax", rate, theirs))
        mine = [Variant("ours", rate, margin, options.injections[0]) for margin in options.margins]
        mine += [Variant("ours", rate, first, inject) for inject in options.injections[1:]]
        mine += [Variant("ours", rate, first, options.injections[0], tile) for tile in options.tiles_mib]
        yield from (variant for variant in others + mine if variant.kind in options.kinds)


def build(variant: Variant, problem: Problem, shared: dict[str, Tensor] | None = None) -> Contestant:
    """A variant with its batch; `shared`: centres that all use, filled by the first who needs them."""
    if problem.threads:
        torch.set_num_threads(problem.threads)
    shared = {} if shared is None else shared
    torch.manual_seed(0)
    device = torch.device(problem.device)
    embedding = torch.randn(problem.batch, problem.size, device=device)
    label = torch.randint(problem.classes, (problem.batch,), device=device)
    product = getattr(torch, problem.product)
    if variant.kind == "ours":
        return sharded_head(variant, problem, embedding, label, shared)
    if "weight" not in shared:
        shared["weight"] = random_centers(0, 0, problem.classes, problem.size, device)
        shared["velocity"] = torch.zeros_like(shared["weight"])
    kind = baseline.FullSoftmax if variant.kind == "full softmax" else baseline.PartialFC
    plain = kind(
        shared["weight"], problem.classes, variant.margin, Ranks(device=device), momentum=shared["velocity"],
        sample_rate=variant.rate, sampled_update="dense" if "dense" in variant.kind else "rows", product_dtype=product,
    )
    state = {"weight": plain.weight.detach(), "velocity": plain.momentum}
    return Contestant(lambda: plain.step(embedding, label, RATE), state)


def random_centers(seed: int, start: int, stop: int, size: int, device: torch.device | None = None) -> Tensor:
    """In place of the head's own reproducible ones, which take a minute for a million classes."""
    return torch.empty(stop - start, size, device=device).normal_(0, 0.01)


@contextmanager
def quick_centers(make: Callable[..., Tensor] = random_centers) -> Iterator[None]:
    """Heads that are built in this context start from `make`'s centres instead of their own."""
    with ExitStack() as patches:
        for module in [m for name, m in sys.modules.items() if name.startswith("recognition.heads.")]:
            if hasattr(module, "initial_centers"):
                patches.enter_context(mock.patch.object(module, "initial_centers", make))
        yield


def share(state: dict[str, Tensor], shared: dict[str, Tensor]) -> None:
    """Let a head's state use the shared tensors, and share what nobody had before; every class in a memory is fresh."""
    for name, tensor in state.items():
        if name in shared and (tensor.shape, tensor.dtype) == (shared[name].shape, shared[name].dtype):
            tensor.set_(shared[name])  # type: ignore[call-overload]
        elif name == "memory":
            tensor.normal_(0, tensor.shape[-1] ** -0.5)
        elif name == "stamp":
            tensor.zero_()
        if name in ("weight", "velocity", "memory", "stamp"):
            shared.setdefault(name, tensor)


def sharded_head(
    variant: Variant, problem: Problem, embedding: Tensor, label: Tensor, shared: dict[str, Tensor]
) -> Contestant:
    """Ours, every class fresh in the memory where there is one."""
    injection = INJECTIONS[variant.inject]()
    if injection.is_on:
        injection = dataclasses.replace(injection, max_age=1 << 40, start_epoch=0.0)
    settings = sharded.HeadSettings(MARGINS[variant.margin](), sample_rate=variant.rate, inject=injection)
    if variant.tile_mib is not None:
        budget: dict[str, Any] = {"tile_bytes": int(variant.tile_mib * MIB)}
        settings = dataclasses.replace(settings, **budget)
    with quick_centers():
        head = sharded.ShardedHead(settings, problem.classes, problem.size, Ranks(device=embedding.device),
                                   product_dtype=getattr(torch, problem.product))
    state = head.state()
    share(state, shared)
    count = itertools.count(1)

    def step() -> None:
        number = next(count)
        result = head.step(embedding, label, number, RATE)
        if injection.is_on:
            head.remember(result, embedding, number, result.finite)

    return Contestant(step, state)


def measure(problem: Problem, contestants: list[Variant], repeats: int) -> list[dict[str, Any]]:
    """Times and peaks of all variants of a problem, a row of figures each; None where a GPU's memory did not do."""
    times = in_fresh_process(time_variants, problem, contestants, repeats)
    rows = []
    for variant, seconds in zip(contestants, times, strict=True):
        peak, state = in_fresh_process(peak_bytes, problem, variant)
        row = {"classes": problem.classes, "batch": problem.batch, "size": problem.size, "name": variant.name}
        row |= dataclasses.asdict(variant)
        row["milliseconds"], row["cpu_milliseconds"] = (
            [statistics.median(kind) * 1e3 for kind in zip(*seconds, strict=True)] if seconds else [None, None]
        )
        row["rounds_milliseconds"] = [wall * 1e3 for wall, _ in seconds]
        row["peak_mib"], row["state_mib"] = peak and peak / MIB, state / MIB
        rows.append(row)
    for row in rows:
        plain = [other for other in rows if other["kind"] == "plain" and other["rate"] == row["rate"]]
        full = [other for other in rows if other["name"] == row["name"] and other["rate"] == 1]
        row["time_ratio"] = ratio(row, plain, "milliseconds")
        row["cpu_ratio"] = ratio(row, plain, "cpu_milliseconds")
        row["peak_ratio"] = ratio(row, plain, "peak_mib")
        row["ratio_to_full_rate"] = ratio(row, full, "milliseconds")
    return rows


def ratio(row: dict[str, Any], others: list[dict[str, Any]], what: str) -> float | None:
    """Of a figure to another row's, if both are there."""
    return row[what] / others[0][what] if others and row[what] and others[0][what] else None


def time_variants(problem: Problem, contestants: list[Variant], repeats: int) -> list[list[tuple[float, float]]]:
    """Seconds and CPU seconds a step of each variant in each round; empty where the GPU's memory did not do."""
    shared: dict[str, Tensor] = {}
    ready = [build(variant, problem, shared) for variant in contestants]
    counts = []
    for contestant in ready:
        try:
            first, second = (time_steps(contestant.step, 1, problem.device)[0] for _ in range(2))
            counts.append(math.ceil(ROUND_SECONDS / min(first, second)))
        except torch.OutOfMemoryError:
            counts.append(0)
    times: list[list[tuple[float, float]]] = [[] for _ in ready]
    for _ in range(repeats):
        for contestant, count, values in zip(ready, counts, times, strict=True):
            if count:
                values.append(time_steps(contestant.step, count, problem.device))
    return times


def peak_bytes(problem: Problem, variant: Variant, steps: int = 3) -> tuple[int | None, int]:
    """Largest memory in use during a few steps above the state, and the state; None where the GPU's did not do."""
    # A first run on a small problem loads the code that a step needs, which is nobody's peak.
    build(variant, dataclasses.replace(problem, classes=1000)).step()
    gc.collect()
    before = memory_now(problem.device)
    contestant = build(variant, problem)
    for tensor in contestant.state.values():
        tensor.mul_(1)  # memory that was never written may not be resident yet
    restart_high_water(problem.device)
    state = sum(tensor.numel() * tensor.element_size() for tensor in contestant.state.values())
    try:
        for _ in range(steps):
            contestant.step()
    except torch.OutOfMemoryError:
        return None, state
    return high_water(problem.device) - before - state, state


if __name__ == "__main__":
    run_command(main)
