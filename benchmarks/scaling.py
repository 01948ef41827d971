"""How a step's cost grows with classes, batch and ranks, measured and modelled: `python benchmarks/scaling.py`.

Measured here, on this machine's CPU (or, with --device cuda, its GPU for the last two):
    exchange    calls and bytes of the collectives of whole steps on 1, 2 and 4 gloo ranks; the formulas must be exact
    head        seconds and peak memory of its step for several C, B, sampling rates, with and without injection
    backbone    seconds and peak memory of forward and backward for several batches
Formulas (benchmarks/scaling_model.py), and regressions with more terms, are fitted to the small problems and held
against the large ones, which the fit has not seen; the errors of both are printed. Modelled beyond: the formulas with
constants of a GPU and its links, for up to 100M classes on 64 GPUs. Whatever is printed, written or drawn says whether
it is measured or modelled.

    python benchmarks/scaling.py                                     # ten minutes on two quiet cores
    python benchmarks/scaling.py --no-measure --plot scaling.png     # the model alone
    python benchmarks/scaling.py --device cuda --measured-classes 200000 500000 1000000 4000000

Proven by tests/benchmarks/test_scaling.py.
"""

import argparse
import dataclasses
import itertools
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.ranks import on_ranks
from benchmarks.scaling_count import count_all, count_backbone, write_set
from benchmarks.scaling_fit import FORMULA, REGRESSION, backbone_rows, foretell, head_memory, head_row, head_rows
from benchmarks.scaling_model import Backbone, Hardware, Step, collectives, modelled
from benchmarks.scaling_report import plot, report
from recognition.backbones import BACKBONES
from recognition.errors import SettingsError, run_command


def main(arguments: Sequence[str]) -> None:
    """Measure, model and report."""
    options = parse(arguments)
    hardware = Hardware(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Hardware)})
    backbones = {name: count_backbone(name, options.size) for name in options.backbones}
    result: dict[str, Any] = {
        "torch": torch.__version__, "machine": platform.machine(), "device": options.device,
        "hardware": dataclasses.asdict(hardware), "counted": {k: dataclasses.asdict(v) for k, v in backbones.items()},
    }
    if options.measure:
        result["measured"] = measure(options)
    result["modelled"] = [
        modelled(Step(classes, options.batch * gpus, gpus, rate, inject == "qaface", inject == "qaface", options.size,
                      options.stored), backbones[name], hardware)
        for name, classes, gpus, rate, inject in itertools.product(
            options.backbones, options.classes, options.gpus, options.rates, options.injections)
    ]
    report(result, options.room)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plot(result, options.plot, options.room)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="How a step's cost grows.")
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[206_000, 2_000_000, 10_000_000, 100_000_000], help="C of the model")
    add("--gpus", type=int, nargs="+", default=[1, 8, 64], help="R of the model (default 1 8 64)")
    add("--batch", type=int, default=128, help="images a GPU in the model (default 128)")
    add("--rates", type=float, nargs="+", default=[1.0, 0.1], help="sampling rates of the model (default 1 0.1)")
    add("--injections", nargs="+", default=["none", "qaface"], choices=["none", "qaface"])
    add("--backbones", nargs="+", default=["iresnet50"], choices=list(BACKBONES), metavar="NAME")
    add("--size", type=int, default=512, help="d, elements of an embedding (default 512)")
    add("--stored", type=int, default=4, choices=[2, 4], help="bytes of a stored element: head.storage (default 4)")
    add("--room", type=float, nargs="+", default=[80, 141], help="memory of GPUs, GB (default 80 141)")
    for field in dataclasses.fields(Hardware):
        kind = type(field.default)
        add(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=f"default {field.default:g}")
    add("--no-measure", dest="measure", action="store_false", help="the model alone")
    add("--quick", action="store_true", help="small measurements")
    add("--measured-classes", type=int, nargs="+", help="C of the head's measurements, in order; the last two held out")
    add("--measured-backbone", default="iresnet18", choices=list(BACKBONES), metavar="NAME")
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], help="gloo ranks that are counted (default 1 2 4)")
    add("--repeats", type=int, default=3, help="rounds, of which the median counts (default 3)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="of the head's and the backbone's measurements")
    add("--json", type=Path, help="write the result to this file")
    add("--plot", type=Path, help="draw the model to this file (png, svg, …)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch sees no GPU here")
    usual = {"cuda": [200_000, 500_000, 1_000_000, 4_000_000], "cpu": [5000, 10_000, 20_000, 40_000, 80_000]}
    chosen = [500, 1000, 3000, 6000] if options.quick else usual[options.device]
    options.measured_classes = sorted(options.measured_classes or chosen)
    if len(options.measured_classes) < 4:
        raise SettingsError("--measured-classes: two to fit, two to hold out at least")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is measured, beside what the formulas say."""
    exchange, phases = measure_exchange(options)
    product = "bfloat16" if options.device == "cuda" else "float32"
    *small, held, larger = options.measured_classes
    batch = 1024 if options.device == "cuda" else 16 if options.quick else 64

    def step(classes: int, batch: int, rate: float = 1.0, inject: bool = False) -> Step:
        return Step(classes, batch, 1, rate, inject, inject, options.size)

    steps = [step(c, b, rate, inject) for c in small for b, rate, inject in (
        (batch // 2, 1.0, False), (batch, 1.0, False), (batch, 0.2, False), (batch, 1.0, True), (batch, 0.2, True))]
    steps += [step(c, batch, rate, inject) for c in (held, larger) for rate in (1.0, 0.2) for inject in (False, True)]
    steps += [step(held, 2 * batch)]
    head = head_rows(steps, (small[-1], batch), options.repeats, options.device, product)
    if options.device == "cpu":
        head += phases
    batches = [2, 4, 8] if options.quick else [4, 8, 16, 32, 64] if options.device == "cpu" else [32, 64, 128, 256]
    largest = batches[-2] if options.quick else batches[-3]
    backbone = backbone_rows(options.measured_backbone, batches, largest, options.repeats, options.device, options.size)
    room = [row | {"part": "backbone's memory"} for row in backbone]
    kept = [step(small[-1], batch), step(held, batch), step(held, batch, 0.2), step(held, batch, 1.0, True)]
    state = head_memory(kept, options.device, product)
    times = [row for part in (head, backbone) for kind in (REGRESSION, FORMULA) for row in foretell(part, kind)]
    return {"exchange": exchange, "times": times, "backbone_memory": foretell(room, REGRESSION, "bytes"),
            "head_memory": state}


def measure_exchange(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Calls and bytes of whole steps beside the formulas', and the head's CPU seconds on a rank among several."""
    name, (small, large) = "tiny", (1000, 4000 if options.quick else 16_000)
    rows, phases = [], []
    with tempfile.TemporaryDirectory() as folder:
        for classes in (small, large):
            write_set(Path(folder, str(classes)), classes)
        for ranks in options.ranks:
            def step(classes: int, batch: int, rate: float, inject: bool, ranks: int = ranks) -> Step:
                return Step(classes, batch, ranks, rate, inject, inject, options.size)

            steps = [step(small, 16, 1.0, False), step(small, 16, 0.1, False), step(small, 16, 0.1, True),
                     step(small, 64, 1.0, True), step(large, 64, 1.0, False), step(large, 64, 1.0, True)]
            backbone = count_backbone(name, options.size)
            of_ranks = on_ranks(ranks, count_all, Path(folder), steps, name)
            for at, *found in zip(steps, *of_ranks, strict=True):
                rows.append(exchange_row(at, backbone, [each["counted"] for each in found]))
                if at.classes == large:
                    seconds = max(each["cpu_seconds"]["head"] + each["cpu_seconds"]["memory write"] for each in found)
                    phases.append(head_row(at, seconds, held_out=True, part="head among ranks"))
    return rows, phases


def exchange_row(step: Step, backbone: Backbone, found: list[dict[str, tuple[int, int]]]) -> dict[str, Any]:
    """What the ranks counted, and what the formulas say; every rank counts the same."""
    formulas = {kind.name: (kind.calls, kind.num_bytes) for kind in collectives(step, backbone)}
    return {**dataclasses.asdict(step), "backbone": backbone.name, "counted": found[0], "formulas": formulas,
            "exact": all(each == formulas for each in found)}


if __name__ == "__main__":
    run_command(main)
