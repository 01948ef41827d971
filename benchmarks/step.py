"""Images per second, memory and parts of the whole training step: `python benchmarks/step.py --backbone iresnet50`.

Contestants of a case (backbone, batch, classes): `ours` without and with injection, the `baseline`
(benchmarks/baseline/step.py), and the `backbone alone`, ours without head and data. They take turns in one process, so
that a busy machine slows all of them (benchmarks/step_rounds.py); medians over the rounds are printed, and medians of
the rounds' ratios. Peaks: each variant by itself, what it took from before it was built to the middle of a step, in a
fresh process on the CPU. The floor is the operations of backbone and head over the device's matrix products a second.

    python benchmarks/step.py --preset cpu --json build/step.json        # two backbones, 10k and 1M classes
    python benchmarks/step.py --preset gpu --json build/step.json --plot build/step.png
    python benchmarks/step.py --backbone mobilefacenet --classes 10000 --inject both --data FOLDER
    python benchmarks/step.py --backbone iresnet50 --each optimizer.implementation=foreach --kinds ours

docs/performance.md says how to read the result. One rank. Proven by tests/benchmarks/test_step.py.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.loader import write_pictures
from benchmarks.measure import high_water, in_fresh_process, matmul_tflops, memory_now, restart_high_water
from benchmarks.ranks import environment_of
from benchmarks.step_contestants import KINDS, OURS, USUAL, Problem, Variant, build, require_no_options, settings
from benchmarks.step_figures import add_figures, dense_peak
from benchmarks.step_report import markdown, plot
from benchmarks.step_rounds import time_variants
from recognition.assembly import choose_precision
from recognition.backbones import BACKBONES
from recognition.backbones.work import multiply_accumulates
from recognition.cpus import available_cpus, rank_environment
from recognition.data.dataset import open_dataset
from recognition.errors import SettingsError, run_command
from recognition.log import provenance
from recognition.memory import INJECTIONS

MIB = 1 << 20
MADE = ("synthetic", "device")
LARGEST_LABEL = 1 << 24  # what a record's float32 label holds exactly


class Case(NamedTuple):
    """What a preset measures. inject: without, with, or both.  each: settings, see --each."""

    backbone: str
    batch: int
    classes: int
    inject: str = "both"
    each: tuple[str, ...] = ()


PRESETS = {
    "cpu": [Case(name, batch, classes, each=("speed.compile=blocks",)) for classes in (10_000, 1_000_000)
            for name, batch in (("mobilefacenet", 32), ("iresnet18", 32))],
    "gpu": [Case("iresnet50", 512, 206_000), Case("iresnet100", 512, 206_000), Case("iresnet18", 1024, 206_000),
            Case("mobilefacenet", 1024, 206_000), Case("iresnet50", 512, 2_000_000, "off"),
            Case("iresnet50", 512, 10_000_000, "off")],
}
"""Batches a GPU as large as throughput asks for; on a CPU so small that the baseline fits into 16 GiB at 1M classes."""


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    options = parse(arguments)
    peak, source = peak_tflops(options)
    result: dict[str, Any] = {
        "date": date.today().isoformat(), "command": shlex.join(["python", "benchmarks/step.py", *arguments]),
        **provenance(), "device": device_name(options.device), "threads": options.threads,
        "precision": options.precision, "peak_tflops": peak, "peak_source": source, "rows": [],
    }
    for case in cases(options):
        with pictures(options.data, case.classes, max(4 * case.batch, 1024)) as (folder, classes):
            problem = Problem(case.backbone, case.batch, classes, options.sample_rate, options.margin, options.device,
                              options.precision, str(folder), options.data == "device", options.workers,
                              options.threads, tuple(options.overrides), options.all_fresh)
            rows = measure(problem, list(variants(case, options)), options)
        add_figures(rows, peak)
        result["rows"] += rows
        if options.json:  # as far as it is, should a later case fail
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.plot:
        plot(result["rows"], options.plot)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The whole training step, measured on one rank.")
    add = parser.add_argument
    add("--preset", choices=PRESETS, help="the cases of docs/performance.md, or those of them that --backbone and "
        "--classes name; --batch and --rounds still count")
    add("--backbone", nargs="+", choices=BACKBONES, metavar="NAME",
        help="default mobilefacenet")
    add("--batch", type=int, help="images a step (default 32 on a CPU, 512 on a GPU)")
    add("--classes", type=int, nargs="+", help="C (default 10000; of a set of yours: its own)")
    add("--sample-rate", type=float, default=1.0, help="share of the classes that a step uses (default 1)")
    add("--margin", default="arcface", choices=["arcface", "cosface"], help="default arcface")
    add("--inject", default="both", choices=["on", "off", "both"], help="ours with or without injection (default both)")
    add("--injection", default="qaface", choices=[name for name in INJECTIONS if name != "none"], help="default qaface")
    add("--all-fresh", action="store_true", help="inject into all classes, not into the share that a run would")
    add("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND",
        help="contestants (default: " + " / ".join(KINDS) + ")")
    add("--data", default="synthetic", help="synthetic: JPEGs made for it, through the loaders; device: one batch that "
        "lies on the device; or a RecordIO set (default synthetic)")
    add("--precision", default="auto", choices=["auto", "bf16", "fp16", "fp32"], help="default auto, as in training")
    add("--set", "--speed", dest="overrides", nargs="+", action="extend", default=[], metavar="a.b=VALUE",
        help="settings of all contestants, but those that an option here chooses")
    add("--each", nargs="+", default=[], metavar="a.b=VALUE", help="for each of these another contestant: ours with it")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    add("--threads", type=int, help="torch's threads on a CPU (default: all cores)")
    add("--workers", type=int, help="threads or processes of each loader (default: all cores)")
    add("--rounds", type=int, default=5, help="of which the median counts (default 5)")
    add("--seconds", type=float, default=2.0, help="shorter steps are repeated to fill this in a round (default 2)")
    add("--peak-tflops", type=float, help="10¹² operations a second that count as 100 %% (default: by the GPU's name, "
        "else measured)")
    add("--no-memory", action="store_true", help="leave out the peaks")
    for name, what in (("json", "the result"), ("markdown", "the tables"), ("plot", "a picture (png, svg, …)")):
        add(f"--{name}", type=Path, help=f"write {what} to this file")
    options = parser.parse_args(arguments)
    require_no_options((*options.overrides, *options.each))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch sees no GPU here")
    if options.data not in MADE and options.classes:
        raise SettingsError(f"--classes with --data {options.data}: a set has its own classes; leave one out")
    if options.device == "cpu":
        options.threads = options.threads or available_cpus()
    options.workers = options.workers or available_cpus()
    options.precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[
        choose_precision(options.precision, torch.device(options.device))]
    return options


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """What the command line asks to measure."""
    if options.preset:
        for case in PRESETS[options.preset]:
            chosen = case.backbone in (options.backbone or [case.backbone])
            if chosen and case.classes in (options.classes or [case.classes]):
                yield case._replace(batch=options.batch or case.batch, each=(*case.each, *options.each))
        return
    batch = options.batch or (512 if options.device == "cuda" else 32)
    for classes, name in itertools.product(options.classes or [10_000], options.backbone or ["mobilefacenet"]):
        yield Case(name, batch, classes, options.inject, tuple(options.each))


def variants(case: Case, options: argparse.Namespace) -> Iterator[Variant]:
    """The contestants of a case."""
    for kind in options.kinds:
        if kind != OURS:
            yield Variant(kind)
    if OURS in options.kinds:
        injections = {"off": ["none"], "on": [options.injection], "both": ["none", options.injection]}[case.inject]
        for inject in injections:
            yield Variant(OURS, inject)
            yield from (Variant(OURS, inject, (override,)) for override in case.each)


@contextmanager
def pictures(data: str, classes: int, count: int) -> Iterator[tuple[Path, int]]:
    """The set of a case and its number of classes: that of --data, or JPEGs whose classes are drawn from C."""
    if data not in MADE:
        yield Path(data), open_dataset(data).num_classes
        return
    if classes > LARGEST_LABEL:
        raise SettingsError(f"--classes {classes}: synthetic data has {LARGEST_LABEL} at most")
    with tempfile.TemporaryDirectory(prefix="step-") as name:
        folder = Path(name)
        write_pictures(folder, count, np.random.default_rng(0).integers(0, classes, count).tolist())
        (folder / "property").write_text(f"{classes},112,112\n")
        yield folder, classes


def peak_tflops(options: argparse.Namespace) -> tuple[float, str]:
    """What counts as 100 % of the device, in 10¹² operations a second, and where the number is from."""
    if options.peak_tflops:
        return options.peak_tflops, "given"
    if options.precision != "fp32" and (known := dense_peak(device_name(options.device))):
        return known, "table"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    return in_fresh_process(matmul_tflops, options.device, dtype, options.threads), "measured"


def device_name(device: str) -> str:
    """The GPU's name, or how many cores the CPU has for us."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {available_cpus()} cores"


def measure(problem: Problem, contestants: list[Variant], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times and peaks of all contestants of a case, a row each; None where a GPU's memory did not do.

    Times are taken in a process that starts as a launched rank does; peaks with malloc as it comes, for what the other
    keeps would count as a contestant's.
    """
    with environment_of(rank_environment(options.threads or available_cpus(), os.environ)):
        times = in_fresh_process(time_variants, problem, contestants, options.rounds, options.seconds)
    # On the CPU what an earlier one has loaded and kept would blur a peak; a GPU's is counted to the byte.
    groups = [[variant] for variant in contestants] if problem.device == "cpu" else [contestants]
    peaks: list[Any] = [(None, None)] * len(contestants)
    if not options.no_memory:
        peaks = [peak for group in groups for peak in in_fresh_process(peak_bytes, problem, group)]
    return [row(problem, *of_one) for of_one in zip(contestants, times, peaks, strict=True)]


def row(
    problem: Problem, variant: Variant, rounds: list[dict[str, float]], peak: tuple[int | None, int | None]
) -> dict[str, Any]:
    """What was measured of a contestant, the parts in the middle round. rounds: seconds of a step and of its parts."""
    keep = ("backbone", "batch", "classes", "sample_rate", "margin", "precision")
    asked, config = dataclasses.asdict(problem), settings(problem, variant)
    found: dict[str, Any] = {name: asked[name] for name in keep}
    found |= {"data": "device" if problem.resident else "loader", "name": variant.name, "kind": variant.kind,
              "inject": variant.inject, "overrides": [*problem.overrides, *variant.overrides],
              "embedding_size": config.backbone.embedding_size,
              "compile": "off" if variant.kind == USUAL else config.speed.compile,
              "giga_macs": multiply_accumulates(config.backbone) / 1e9,
              "momentum_forward": config.head.inject.needs_momentum}
    found["rounds_ms"] = [seconds["step"] * 1e3 for seconds in rounds]
    found["rounds_cpu_ms"] = [seconds["cpu"] * 1e3 for seconds in rounds]
    middle = sorted(rounds, key=lambda seconds: seconds["step"])[len(rounds) // 2] if rounds else {}
    found["breakdown_ms"] = {part: value * 1e3 for part, value in middle.items() if part not in ("step", "cpu")}
    found["peak_mib"], found["state_mib"] = (value and value / MIB for value in peak)
    return found


def peak_bytes(problem: Problem, contestants: list[Variant], steps: int = 3) -> list[tuple[int | None, int | None]]:
    """Largest memory that each variant takes in a few steps, and what it keeps between them; None where it did not do.

    Counted from before the variant was built; on a GPU tensors, or with CUDA graphs all that the allocator holds.
    """
    if problem.device == "cpu":  # a first run of something small loads the code that a step needs: nobody's peak
        with pictures("synthetic", 100, 16) as (folder, _):
            small = dataclasses.replace(problem, backbone="tiny", batch=8, data=str(folder))
            build(small, contestants[0]).step()
    return [peak_of(problem, variant, steps) for variant in contestants]


def peak_of(problem: Problem, variant: Variant, steps: int) -> tuple[int | None, int | None]:
    """See `peak_bytes`."""
    reserved = variant.kind != USUAL and settings(problem, variant).speed.graphs
    gc.collect()
    before = memory_now(problem.device, reserved)
    try:
        contestant = build(problem, variant)
        gc.collect()
        restart_high_water(problem.device)
        for _ in range(steps):
            contestant.step()
    except torch.OutOfMemoryError:
        return None, None
    return high_water(problem.device, reserved) - before, contestant.state


if __name__ == "__main__":
    run_command(main)
