"""Size, speed and accuracy of exported files in float32, float16 and int8: `python benchmarks/export.py MODEL …`.

MODEL is a run folder, a .pt or .onnx file, or the name of a backbone: that one is untrained, its BatchNorm statistics
those of the images, and only its sizes and times mean anything. Every precision is exported by tools/export_onnx.py
and run by onnxruntime on the CPU. Times are medians over rounds that alternate between the precisions, so that a busy
machine slows all of them; the ratios to float32 are what to go by. Proven by tests/benchmarks/test_export_benchmark.py.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime
import torch
from prettytable import PrettyTable

from eval.embed import load_embedder
from eval.pixels import normalise
from eval.verification import evaluate, load_set, write_json
from recognition.backbones import BACKBONES, BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.cpus import available_cpus
from recognition.errors import run_command
from tools.export_onnx import CALIBRATION, CHECK, export
from tools.exporting.form import Form
from tools.exporting.images import generated_images, read_images

PRECISIONS = ("fp32", "fp16", "int8")
STATISTICS_FROM = 16  # images that an untrained network's BatchNorm sees


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    options = parse(arguments)
    images = generated_images(2 * CHECK) if options.images is None else read_images(options.images, CALIBRATION + CHECK)
    pairs = None if options.pairs is None else load_set(options.pairs)
    result: dict[str, Any] = {"cpus": available_cpus(), "rounds": options.rounds, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(options.models):
            place = Path(folder, str(number))
            place.mkdir()
            model = Path(name)
            if name in BACKBONES and not model.exists():
                model = untrained(name, place / "model.pt", images)
            files = {precision: place / f"{precision}.onnx" for precision in PRECISIONS}
            rows = {"fp32": facts(model, "fp32", files["fp32"], images)}
            for precision in PRECISIONS[1:]:  # of the graph that is there already
                rows[precision] = facts(files["fp32"], precision, files[precision], images)
            for precision, file in files.items():
                if pairs is not None and name not in BACKBONES:
                    rows[precision]["accuracy"] = evaluate(load_embedder(file, device="cpu").embed, pairs)["accuracy"]
            for threads in options.threads:
                for batch in options.batches:
                    for precision, figures in times(files, images, batch, threads, options.rounds).items():
                        rows[precision]["times"].append({"threads": threads, "batch": batch, **figures})
            result["models"][name] = rows
            print(table(name, rows), flush=True)
    if options.json:
        write_json(options.json, result)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Exported files: sizes, times and accuracy by precision.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run folder, .pt, .onnx, or name of a backbone")
    parser.add_argument("--images", type=Path, help="faces to calibrate and compare on; without it they are made up")
    parser.add_argument("--pairs", type=Path, metavar="SET", help="verification set, for the accuracy")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], help="images at once (default 1 32)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of onnxruntime (default 1 2)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds, of which the median counts (default 15)")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args(arguments)


def untrained(name: str, path: Path, images: np.ndarray) -> Path:
    """A backbone as it begins, with the statistics of these images, so that no value leaves float16's range."""
    torch.manual_seed(0)
    settings = BackboneSettings(name)
    module = build(settings).train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        module(torch.from_numpy(normalise(images[:STATISTICS_FROM])))
    save_model(path, module.eval(), settings, {})
    return path


def facts(model: Path, precision: str, out: Path, images: np.ndarray) -> dict[str, Any]:
    """Export; what the file weighs, and how near it is to the network."""
    report = export(model, out, images, form=Form(precision, least_cosine=-1.0))  # type: ignore[arg-type]
    return {
        "bytes": report.num_bytes,
        "min_cosine": report.min_cosine,
        "mean_cosine": report.mean_cosine,
        "accuracy": None,
        "times": [],
    }


def times(
    files: dict[str, Path], images: np.ndarray, batch: int, threads: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds a call of each file, median over alternating rounds, and its ratio to the first file's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the others are to have the cores
    options.log_severity_level = 3
    sessions = {
        name: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for name, file in files.items()
    }
    feed = {"data": normalise(images[np.arange(batch) % len(images)])}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feed)
            if number:  # the first warms up
                taken[name].append((time.perf_counter() - start) * 1e3)
    median = {name: statistics.median(values) for name, values in taken.items()}
    first = next(iter(median.values()))
    return {name: {"milliseconds": value, "ratio": value / first} for name, value in median.items()}


def table(name: str, rows: dict[str, dict[str, Any]]) -> PrettyTable:
    """One row a precision."""
    first = next(iter(rows.values()))
    titles = [f"{entry['threads']} thr., batch {entry['batch']}" for entry in first["times"]]
    out = PrettyTable(["precision", "MB", "cosine, mean", "least", "accuracy", *titles], align="r", title=name)
    for precision, row in rows.items():
        accuracy = "–" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        shown = [f"{entry['milliseconds']:.1f} ms = {entry['ratio']:.2f}" for entry in row["times"]]
        out.add_row([precision, f"{row['bytes'] / 1e6:.2f}", f"{row['mean_cosine']:.5f}", f"{row['min_cosine']:.5f}",
                     accuracy, *shown])
    return out


if __name__ == "__main__":
    run_command(main)
